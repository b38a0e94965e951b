"""What a person looks at, and what calls one: alarms on what is lost or fails, and one page of numbers.

The numbers of rounds are written by the functions into their logs (EMF), where CloudWatch finds them; those
of functions, queues, the table and the workflow are AWS's own.
"""

import json
from typing import Any

from fleetfold.aws.rights import FUNCTIONS, MACHINE, named, resource, sub
from fleetfold.tell.numbers import MORE, SIX, Number

Data = dict[str, Any]

NAMESPACE = "fleetfold"
DIMENSIONS = ("fleet", "run")
"""Of the metrics that the functions write."""
DRAWN = (*SIX, *MORE)
"""Of the numbers of a round, those that have a graph: the six first."""
FIVE_MINUTES = 300


def alarms() -> Data:
    """One for each way in which something can get lost or stop; a topic of the user's is told, if there is
    one."""
    made: Data = {}
    for queue in ("ArrivalsDead", "SaidDead"):
        made[f"{queue}Alarm"] = _alarm(
            "messages that no function could take in are laid aside: fleetfold aws status",
            "AWS/SQS", "ApproximateNumberOfMessagesVisible", {"QueueName": _att(queue, "QueueName")},
            statistic="Maximum",
        )  # fmt: skip
    for function in FUNCTIONS:
        name = {"FunctionName": {"Ref": resource(function)}}
        for metric, least, what in (
            ("Errors", 5, "fails again and again: fleetfold aws logs RUN"),
            ("Throttles", 10, "is not let run: the account's limit of functions at once is reached"),
        ):
            made[f"{resource(function)}{metric}Alarm"] = _alarm(
                f"the function {function} {what}", "AWS/Lambda", metric, name, least=least
            )
    for metric in ("ExecutionsFailed", "ExecutionsTimedOut", "ExecutionsAborted"):
        made[f"{metric}Alarm"] = _alarm(
            "a run stands still: fleetfold aws status says how to go on",
            "AWS/States", metric, {"StateMachineArn": {"Ref": "Workflow"}},
        )  # fmt: skip
    for metric in ("ReadThrottleEvents", "WriteThrottleEvents"):
        made[f"{metric}Alarm"] = _alarm(
            "the table cannot keep up for minutes; nothing is lost, rounds are slower",
            "AWS/DynamoDB", metric, {"TableName": {"Ref": "Table"}}, least=1000,
        )  # fmt: skip
    return made


def dashboard() -> Data:
    """One page: rounds, the fleet, functions, queues, the workflow, the table, and the newest errors."""
    rounds = [
        _graph(_title(number), [[{"expression": _each_run(number.name, _how(number)), "id": "e1"}]])
        for number in DRAWN
    ]
    by_function = [
        _graph(
            f"functions: {metric.lower()}",
            [["AWS/Lambda", metric, "FunctionName", named(f), {"label": f}] for f in FUNCTIONS],
            how,
        )
        for metric, how in (
            ("Invocations", "Sum"),
            ("Duration", "p99"),
            ("Errors", "Sum"),
            ("ConcurrentExecutions", "Maximum"),
        )
    ]
    queues = _graph(
        "queues: messages waiting, and laid aside",
        [
            ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", f"${{{queue}.QueueName}}"]
            for queue in ("Arrivals", "Said", "ArrivalsDead", "SaidDead")
        ],
        "Maximum",
    )
    workflow = _graph(
        "workflow: executions",
        [
            ["AWS/States", metric, "StateMachineArn", "${Machine}"]
            for metric in ("ExecutionsStarted", "ExecutionsSucceeded", "ExecutionsFailed")
        ],
    )
    table = _graph(
        "table: units used",
        [
            ["AWS/DynamoDB", metric, "TableName", "${Table}"]
            for metric in ("ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits", "WriteThrottleEvents")
        ],
    )
    sources = " | ".join(f"SOURCE '/aws/lambda/{named(f)}'" for f in FUNCTIONS)
    errors = {
        "type": "log",
        "width": 24,
        "height": 6,
        "properties": {
            "title": "the newest errors",
            "region": "${AWS::Region}",
            "query": f"{sources} | fields @timestamp, function_name, message, reason "
            "| filter level = 'ERROR' or @message like /Task timed out|Runtime.ExitError/ "
            "| sort @timestamp desc | limit 20",
        },
    }
    widgets = [*rounds, *by_function, queues, workflow, table, errors]
    return {
        "Type": "AWS::CloudWatch::Dashboard",
        "Properties": {
            "DashboardName": {"Ref": "AWS::StackName"},
            "DashboardBody": {"Fn::Sub": [json.dumps({"widgets": widgets}), {"Machine": MACHINE}]},
        },
    }


def _alarm(
    why: str, namespace: str, metric: str, where: Data, *, least: int = 1, statistic: str = "Sum"
) -> Data:
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmDescription": sub(f"${{AWS::StackName}}: {why}"),
            "Namespace": namespace,
            "MetricName": metric,
            "Dimensions": [{"Name": name, "Value": value} for name, value in where.items()],
            "Statistic": statistic,
            "Period": FIVE_MINUTES,
            "EvaluationPeriods": 1,
            "Threshold": least,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "notBreaching",
            "AlarmActions": {"Fn::If": ["HasTopic", [{"Ref": "AlarmTopic"}], {"Ref": "AWS::NoValue"}]},
        },
    }


def _graph(title: str, metrics: list[Any], how: str = "Sum") -> Data:
    return {
        "type": "metric",
        "width": 8,
        "height": 6,
        "properties": {
            "title": title,
            "region": "${AWS::Region}",
            "stat": how,
            "period": FIVE_MINUTES,
            "metrics": metrics,
        },
    }


def _title(number: Number) -> str:
    return number.title + (f", {number.unit}" if number.unit not in ("", "count") else "")


def _how(number: Number) -> str:
    """What of several rounds within a point of the graph: seconds are of each."""
    return "Sum" if number.adds and number.unit != "seconds" else "Average"


def _each_run(metric: str, how: str) -> str:
    """A line for every run that has told the metric."""
    which = f'{{{NAMESPACE},{",".join(DIMENSIONS)}}} MetricName="{metric}" fleet="${{Fleet}}"'
    return f"SEARCH('{which}', '{how}', {FIVE_MINUTES})"


def _att(resource: str, name: str) -> Data:
    return {"Fn::GetAtt": [resource, name]}

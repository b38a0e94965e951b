"""What is told of rounds: the same numbers by the same names, whoever reads them.

numbers     which there are, and of which row          prometheus  /metrics
journal     metrics.jsonl in a run's folder            exports     csv, TensorBoard, MLflow
timeline    a round's steps, device by device          traces      OpenTelemetry
page curves report compare                             files of HTML that stand alone
"""

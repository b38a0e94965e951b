"""What a device must and should do, in the numbers that docs/protocol.md has and `check-device` prints.

C connecting · P presence · T tasks · M the model · A addresses · U the update · Q commands
"""

from msgspec import Struct


class Rule(Struct, frozen=True):
    """`text` goes on after "a device". `tried`: whether check-device can."""

    id: str
    must: bool
    text: str
    tried: bool = True

    @property
    def level(self) -> str:
        return "MUST" if self.must else "SHOULD"


class Seen(Struct, frozen=True):
    """What came of a rule. `held` None: it was not tried, and `what` says why."""

    rule: str
    held: bool | None
    what: str


RULES: tuple[Rule, ...] = (
    Rule("C1", True, "connects by MQTT 5, with its certificate and without a clean start"),
    Rule("C2", True, "subscribes to its three topics at QoS 1, and to nothing else"),
    Rule("C3", True, "publishes to its four topics, and to nothing else"),
    Rule("C4", True, "sends no message of more than 32 KiB"),
    Rule("C5", True, "comes back by itself, after pauses that grow and are drawn by chance", tried=False),
    Rule("P1", True, "says its presence, retained, each time that it has connected"),
    Rule("P2", True, "leaves a last will: its presence with `online` false, retained"),
    Rule("T1", True, "does a task: delivers an update, and only then reports `delivered`"),
    Rule("T2", False, "reports `accepted` before it begins"),
    Rule("T3", True, "ignores a message of another version"),
    Rule("T4", True, "ignores what is no message, or is for another device, and lives on"),
    Rule("T5", True, "ignores fields that it does not know"),
    Rule("T6", True, "does a task once that comes twice, also after a restart"),
    Rule("T7", False, "tells its answer again after a restart, while its task is offered"),
    Rule("T8", True, "leaves off a task that is withdrawn: no update comes any more"),
    Rule("T9", True, "refuses a codec that it does not know, with a reason and without an update"),
    Rule("T10", True, "goes on after it was killed at work: one update comes"),
    Rule("T11", True, "answers a task of kind `evaluate`: by an update without tensors, or a refusal"),
    Rule("T12", True, "compares no time in a message with its own clock", tried=False),
    Rule("M1", True, "delivers nothing that was made of a model with another digest"),
    Rule("M2", False, "goes on with a download where it broke off"),
    Rule("A1", True, "asks for fresh addresses when that of the model has expired, and goes on"),
    Rule("A2", True, "asks for fresh addresses when that of the update has expired, and goes on"),
    Rule("A3", True, "leaves off a task of which it is told that there are none"),
    Rule("U1", True, "writes its update as the gate demands: identity, layout, examples"),
    Rule("U2", True, "says length and digest of what it uploads, and both are true"),
    Rule("U3", False, "delivers an update above 32 MiB in parts"),
    Rule("Q1", True, "answers every command, by its response topic, id and correlation data"),
    Rule("Q2", False, "answers a command that comes twice twice, with the same answer"),
    Rule("Q3", False, "answers a command that came while it was away"),
)  # fmt: skip

"""A device that is wrong on purpose: a clean start, no will, no upload, topics of nobody's, an answer to
everything. Run as a script with a bundle."""

import json
import ssl
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

bundle = json.loads(Path(sys.argv[1]).read_text())
place, broker = f"fleetfold/{bundle['fleet']}/{bundle['device']}", urlsplit(bundle["brokers"][0])


def heard(client: Client, data: object, message: MQTTMessage) -> None:
    try:
        task = json.loads(message.payload)
        answer = {name: task[name] for name in ("run", "round", "kind")}
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    said = {"v": 1, "device": bundle["device"], "state": "delivered", **answer}
    client.publish(f"{place}/status", json.dumps(said), 1)


context = ssl.create_default_context(cadata=bundle["authority"])
with tempfile.NamedTemporaryFile("w") as pair:
    pair.write(bundle["certificate"] + bundle["key"])
    pair.flush()
    context.load_cert_chain(pair.name)
client = Client(CallbackAPIVersion.VERSION2, "wrong", protocol=MQTTProtocolVersion.MQTTv5)
client.tls_set_context(context)
client.on_message = heard
client.connect(broker.hostname or "", broker.port or 0, clean_start=True)
client.subscribe([(f"{place}/task", 0), ("fleetfold/#", 0)])
client.publish(f"{place}/diary", "dear diary", 1)
client.publish(f"{place}/presence", json.dumps({"v": 1, "device": bundle["device"]}), 1, retain=True)
client.loop_forever()

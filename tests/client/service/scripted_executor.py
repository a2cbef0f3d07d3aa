"""A process in the executor's place that does what its home's file `script` says: to fail in every way there is."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as MessageProto

from astrofed.client.service import frames
from astrofed.client.service.messages import error_reply, seal_reply
from astrofed.client.service.sealed import Sealed

home, channel = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
with (home / "starts").open("a") as file:
    file.write("x")
script = (home / "script").read_text()
if script == "can't start":
    frames.send(channel, "E", b"the executor can't start: no plug-in")
    sys.exit(1)
frames.send(channel, "+")
hoard = []
while True:
    _, data = frames.receive(channel)
    with (home / "asked").open("a") as file:
        file.write("x")
    script = (home / "script").read_text()
    if script == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if script == "exit":
        sys.exit(3)
    if script == "hang":
        time.sleep(600)
    if script == "stop listening":
        os.kill(os.getpid(), signal.SIGSTOP)
    if script == "hoard":
        while True:
            hoard.append(b"x" * 10_000_000)
            time.sleep(0.01)
    if script == "leak":
        hoard.append(b"x" * 150_000_000)
    if script == "garbage":
        frames.send(channel, "R", b"no reply at all")
        continue
    if script == "complain":
        frames.send(channel, "E", b"the site could not answer: ValueError; its log says where")
        continue
    if script == "slow":
        (home / "begun").touch()
        time.sleep(1)
    if script == "content":
        question = message_from_proto(MessageProto.FromString(Sealed.from_bytes(data[8:]).envelope))
        frames.send(channel, "R", *seal_reply(Message(RecordDict(), reply_to=question)).pieces())
        continue
    frames.send(channel, "R", *error_reply(Sealed.from_bytes(data[8:]), "a reply").pieces())

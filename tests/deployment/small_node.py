"""A site's node in its smallest form, for tests of the server: Flower's own Fleet client around the real client app.

Usage: python small_node.py FOLDER SITE...: a thread for each site, whose key and welcome lie in the folder; its data
are the bundled planets of its name. A run's plan says nothing of where they are.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from astrofed.client.app import build_client_app
from astrofed.client.site import Site
from astrofed.shared import packing, records
from astrofed.shared.keys import plan_public_key, read_node_key
from astrofed.shared.membership import read_welcome
from astrofed.shared.plan import Plan
from astrofed.shared.signed_plan import verify_plan
from astrofed.simulations.bundled import resolve_bundled

Push = Callable[[ObjectTree, Message, dict[str, bytes]], None]


class Wait:
    """Asks the server to hold pulls."""

    def intercept(self, context, call_next):  # type: ignore[no-untyped-def]
        if context.request.url.path.endswith("/pull-messages"):
            context.request.headers["astrofed-wait"] = "5"
        return call_next(context)


def just_so(reply: Message, _push: Push) -> Message:
    """Send a reply as the client app made it."""
    return reply


def main(key_file: Path, welcome_file: Path, data: Path, change: Callable[[Message, Push], Message] = just_so) -> None:
    key, welcome = read_node_key(key_file), read_welcome(welcome_file)
    plan_key = plan_public_key(welcome.plan_key)

    def open_site(_: Context, plan: Plan) -> Site:
        role = next(p.role for p in plan.participants if p.name == welcome.site)
        return Site(name=welcome.site, data=data, role=role, home=None)

    app = build_client_app(open_site)
    client = FleetHttpClient.from_server_address(
        welcome.address,
        False,
        welcome.ca_certificate.encode(),
        [Wait(), NodeAuthHttpInterceptor(key, key.public_key())],
    )
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def patiently(call, request):  # type: ignore[no-untyped-def]
        while True:
            try:
                return call(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code == 401:
                    sys.stdout.write(f"refused: {error.response.text}\n")
                    sys.stdout.flush()
                    os._exit(3)
                if error.response.status_code < 500:
                    raise
                sys.stdout.write(f"answered {error.response.status_code}\n")
                sys.stdout.flush()
            except httpx.HTTPError:
                pass
            time.sleep(0.1)

    node = Node(
        node_id=patiently(client.ActivateNode, ActivateNodeRequest(public_key=public, heartbeat_interval=10)).node_id
    )
    sys.stdout.write(f"connected {node.node_id}\n")
    sys.stdout.flush()

    def beat() -> None:
        while True:
            time.sleep(5)
            patiently(client.SendNodeHeartbeat, SendNodeHeartbeatRequest(node=node, heartbeat_interval=10))

    def push(tree: ObjectTree, envelope: Message, objects: dict[str, bytes]) -> None:
        request = PushMessagesRequest(
            node=node, messages_list=[message_to_proto(envelope)], message_object_trees=[tree]
        )
        pushed = patiently(client.PushMessages, request)
        for identifier in pushed.objects_to_push:
            patiently(
                client.PushObject,
                PushObjectRequest(
                    node=node,
                    run_id=envelope.metadata.run_id,
                    object_id=identifier,
                    object_content=objects[identifier],
                    session_id=pushed.session_id,
                ),
            )

    threading.Thread(target=beat, daemon=True).start()
    while True:
        pulled = patiently(client.PullMessages, PullMessagesRequest(node=node))
        if not pulled.messages_list:
            continue
        envelope = message_from_proto(pulled.messages_list[0])
        run = envelope.metadata.run_id
        try:
            contents = {
                each.object_id: patiently(
                    client.PullObject, PullObjectRequest(node=node, run_id=run, object_id=each.object_id)
                ).object_content
                for each in iterate_object_tree(pulled.message_object_trees[0])
            }
            if not all(contents.values()):  # offered twice, and the run has the reply to the first already
                continue
            whole = inflate_object_from_contents(envelope.metadata.message_id, contents)
            assert isinstance(whole, Message)
            whole.metadata.__dict__["_message_id"] = envelope.metadata.message_id
            patiently(
                client.ConfirmMessageReceived,
                ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=envelope.metadata.message_id),
            )
            question = records.with_content(whole, packing.unpack(whole.content))
            verify_plan(question.content.config_records["config"], plan_key, time.time())
            reply = change(app(question, Context(run, node.node_id, {}, RecordDict(), {})), push)
            if reply.has_content() and packing.NAME not in reply.content:
                reply = records.with_content(reply, packing.pack(reply.content))
            reply.metadata.__dict__["_message_id"] = ""
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
            empty = records.with_content(reply, RecordDict()) if reply.has_content() else reply
            push(get_object_tree(reply), empty, objects)
        except httpx.HTTPStatusError as error:  # the run ended meanwhile
            sys.stdout.write(f"gave up a message: {error}\n")
            sys.stdout.flush()


def serve(change: Callable[[Message, Push], Message] = just_so) -> None:
    """Serve the sites that the command line names, a thread each, until one of them fails."""
    torch.set_num_threads(1)
    threads = [
        threading.Thread(
            target=main,
            args=(
                Path(sys.argv[1]) / f"{name}.key",
                Path(sys.argv[1]) / f"{name}.welcome.json",
                resolve_bundled(f"bundled:planets/{name}"),
                change,
            ),
        )
        for name in sys.argv[2:]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(1)  # a node ends by being killed, or by an error


if __name__ == "__main__":
    serve()

"""A small chat application that serves Carrick's calls with the ordinary gRPC library of Python.

It loads the definition that Carrick itself is built from and shares nothing else with it. What it is asked goes to
standard output, one JSON object a line: first `{"port": …}`, then each call. It ends with its standard input.

    python application.py [PORT]
"""

import json
import pathlib
import sys
import threading
import time
from concurrent import futures
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

import grpc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "src" / "rpc" / "proto"
sys.path.insert(0, str(PROTO))
messages, services = grpc.protos_and_services("rpc.proto")

printing = threading.Lock()


def say(**fields):
    with printing:
        print(json.dumps(fields), flush=True)


def to_client(**fields):
    """A protocol message for the client."""
    return json.dumps(fields)


class Refused(Exception):
    """The user may not do this."""


class Journal(grpc.ServerInterceptor):
    """Notes every call by its method, those that the application does not have too."""

    def intercept_service(self, continuation, details):
        metadata = dict(details.invocation_metadata)
        say(method=details.method.rsplit("/", 1)[-1], sid=metadata.get("sid"), protov=metadata.get("protov"))
        return continuation(details)


class Application(services.RPCServicer):
    """Connect, Command and Disconnect. There is no Restore: gRPC answers it with UNIMPLEMENTED."""

    def Connect(self, request, context):
        user = self.user_of(request.env)
        say(connect=user, url=request.env.url, headers=dict(request.env.headers))
        if user is None:
            return messages.ConnectionResponse(
                status=messages.FAILURE,
                transmissions=[to_client(type="disconnect", reason="unauthorized", reconnect=False)],
            )
        sid = dict(context.invocation_metadata())["sid"]
        return messages.ConnectionResponse(
            status=messages.SUCCESS,
            # Compared byte for byte when somebody is disconnected remotely.
            identifiers=json.dumps({"user": user}, separators=(",", ":")),
            transmissions=[to_client(type="welcome", sid=sid)],
            env=messages.EnvResponse(cstate={"user": user}),
        )

    def user_of(self, env):
        """Known by cookie, by token, or by a ticket in the URL."""
        cookie = SimpleCookie(env.headers.get("cookie", ""))
        if "user" in cookie:
            return cookie["user"].value
        if env.headers.get("x-api-token", "").startswith("token-of-"):
            return env.headers["x-api-token"].removeprefix("token-of-")
        [ticket] = parse_qs(urlsplit(env.url).query).get("ticket", [None])
        return ticket

    def Command(self, request, context):
        say(
            command=request.command,
            identifier=request.identifier,
            data=request.data,
            identifiers=json.loads(request.connection_identifiers),
            cstate=dict(request.env.cstate),
            istate=dict(request.env.istate),
        )
        chat = Chat(request)
        try:
            chat.serve()
        except Refused:
            return messages.CommandResponse(
                status=messages.FAILURE,
                transmissions=[to_client(type="reject_subscription", identifier=request.identifier)],
            )
        except Exception as error:  # whatever it is: the client must not hang on it
            return messages.CommandResponse(status=messages.ERROR, error_msg=repr(error))
        return chat.answer

    def Disconnect(self, request, context):
        say(
            left=json.loads(request.identifiers),
            subscriptions=list(request.subscriptions),
            cstate=dict(request.env.cstate),
            istate={name: json.loads(state) for name, state in request.env.istate.items()},
        )
        return messages.DisconnectResponse(status=messages.SUCCESS)


class Chat:
    """One command of one subscription."""

    def __init__(self, request):
        self.request = request
        self.user = request.env.cstate["user"]
        self.room = json.loads(request.identifier)["room"]
        self.answer = messages.CommandResponse(status=messages.SUCCESS)

    def serve(self):
        if self.request.command == "message":
            action = json.loads(self.request.data)
            getattr(self, action.pop("action"))(**action)
        else:
            getattr(self, self.request.command)()

    def transmit(self, message):
        self.answer.transmissions.append(to_client(identifier=self.request.identifier, message=message))

    def subscribe(self):
        if self.room == "board" and self.user != "ann":
            raise Refused
        self.answer.streams.append(f"chat/{self.room}")
        self.answer.env.istate.update(room=self.room, spoken="0")
        self.transmit({"hello": self.user})
        self.answer.transmissions.append(
            to_client(type="confirm_subscription", identifier=self.request.identifier)
        )

    def unsubscribe(self):
        pass

    def speak(self, text):
        """Answers how often this subscription has spoken: a number that the server keeps for us."""
        spoken = int(self.request.env.istate["spoken"]) + 1
        self.answer.env.istate["spoken"] = str(spoken)
        self.answer.env.cstate["last"] = text
        self.transmit({"heard": text, "spoken": spoken, "in": self.request.env.istate["room"]})

    def recall(self):
        """What the connection has said last, in whichever room."""
        self.transmit({"last": self.request.env.cstate.get("last")})

    def forget(self):
        self.answer.env.cstate["last"] = ""

    def watch(self, room):
        self.answer.streams.append(f"chat/{room}")
        self.transmit({"watching": room})

    def unwatch(self, room):
        self.answer.stopped_streams.append(f"chat/{room}")
        self.transmit({"unwatched": room})

    def mute(self):
        self.answer.stop_streams = True
        self.transmit("muted")

    def ponder(self, seconds):
        time.sleep(seconds)
        self.transmit("pondered")

    def crash(self):
        raise RuntimeError("a bug of the application")

    def quit(self):
        self.transmit("bye")
        self.answer.disconnect = True


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=10),
        interceptors=[Journal()],
        # Two applications on one port would share the calls.
        options=[("grpc.so_reuseport", 0)],
    )
    services.add_RPCServicer_to_server(Application(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    say(port=port)
    sys.stdin.read()
    server.stop(grace=None).wait()


if __name__ == "__main__":
    main()

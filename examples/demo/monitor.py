"""The demo's client of the monitor: its JSON API, and its shell over the WebSocket."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request

import websocket

from demo.programs import DemoError


class Monitor:
    """
    A client of the monitor.

    Args:
        url: Its address, without a slash at the end.
        password: The printed password; sent as a bearer token.
    """

    def __init__(self, url, password):
        self.url = url
        self._header = f"Bearer {password}"

    def get(self, path, **parameters):
        """
        ``GET /api/trace/<path>``, decoded.

        Raises:
            DemoError: The monitor does not answer, or not with JSON.
        """
        address = f"{self.url}/api/trace/{path}"
        if parameters:
            address += "?" + urllib.parse.urlencode(parameters)
        request = urllib.request.Request(address, headers={"Authorization": self._header})
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise DemoError(f"GET {address} returned {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise DemoError(f"GET {address} failed: {error}") from error

    def ask_shell(self, failure, code, timeout_s=30):
        """
        Open the shell on a failure and run one command.

        Returns:
            The shell's mode ("live" or "recreated"), its answer, and its notices.

        Raises:
            DemoError: The shell refused, closed, or did not answer in time.
        """
        address = self.url.replace("http", "ws", 1) + f"/trace/shell/{failure}"
        deadline = time.monotonic() + timeout_s
        try:
            socket = websocket.create_connection(
                address, header={"Authorization": self._header}, timeout=timeout_s, enable_multithread=False
            )
        except (OSError, websocket.WebSocketException) as error:
            raise DemoError(f"the shell at {address} can't be opened: {error}") from error
        mode, said, notices = "", [], []
        try:
            while time.monotonic() < deadline:
                message = json.loads(socket.recv())
                kind = message.get("type")
                if kind == "hello":
                    mode = message["mode"]
                    socket.send(json.dumps({"type": "run", "id": 1, "code": code}))
                elif kind == "mode":
                    mode = message["mode"]
                elif kind == "output":
                    (said if message.get("id") == 1 else notices).append(message["text"])
                elif kind == "done" and message.get("id") == 1:
                    return mode, "".join(said).strip(), notices
                elif kind == "refused":
                    raise DemoError(f"the shell refused: {message.get('why')}")
        except (OSError, ValueError, websocket.WebSocketException) as error:
            raise DemoError(f"the shell at {address} was interrupted: {error!r}") from error
        finally:
            socket.close()
        raise DemoError(f"the shell did not answer {code!r} within {timeout_s} s; its output was {said!r}")

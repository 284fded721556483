"""The report in a browser while a sweep runs: made anew when there are new results."""

from __future__ import annotations

import http.server
from collections.abc import Callable
from pathlib import Path

from taskrunner.errors import TaskrunnerError

NEVER = -1.0


def serve(folder: Path, make: Callable[[], str], host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. `make` gives the page; it is asked again when a result is newer than the page."""
    made: dict[str, object] = {"stamp": NEVER, "page": b""}

    def page() -> bytes:
        stamp = newest(folder)
        if stamp != made["stamp"]:
            made.update(stamp=stamp, page=make().encode())
        content = made["page"]
        assert isinstance(content, bytes)
        return content

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                self.send_error(404)
                return
            try:
                content = page()
            except TaskrunnerError as error:
                self.send_error(503, str(error).partition("\n")[0])
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the page asks for itself every twenty seconds."""

    page()  # what is wrong with the results is told before the address is
    with http.server.HTTPServer((host, port), Handler) as server:
        ready(f"http://{host}:{server.server_address[1]}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


def newest(folder: Path) -> float:
    """When the last result was written."""
    return max((path.stat().st_mtime for path in folder.rglob("*.json")), default=NEVER)

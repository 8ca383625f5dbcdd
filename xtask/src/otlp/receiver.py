"""A receiver of OTLP on loopback that reads requests with the classes of the official
package, and answers as well or as badly as a test wants."""

import gzip
import http.server
import threading
import time

from google.rpc import status_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service


class Request:
    """A request as it came in."""

    def __init__(self, handler, body):
        self.at = time.monotonic()
        self.path = handler.path
        self.headers = handler.headers
        if handler.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        self.size = len(body)
        self.message = service.ExportMetricsServiceRequest()
        self.message.ParseFromString(body)


class Receiver(http.server.ThreadingHTTPServer):
    """Answers one request after the other as `script` says, and all others well."""

    daemon_threads = True
    # A reset connection is what some tests are about.
    handle_error = lambda *_: None

    def __init__(self, script=(), port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.script = list(script)
        self.requests = []
        self.errors = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.shutdown()
        self.thread.join()
        self.server_close()
        assert not self.errors, self.errors


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        try:
            request = Request(self, self.rfile.read(length))
        except Exception as error:
            self.server.errors.append(f"{type(error).__name__}: {error}")
            raise
        answer = self.server.script.pop(0) if self.server.script else taken
        self.server.requests.append(request)
        answer(self)

    def reply(self, status, body=b"", kind="application/x-protobuf", **headers):
        self.send_response(status)
        if body:
            self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def taken(handler):
    handler.reply(200, service.ExportMetricsServiceResponse().SerializeToString())


def partly(rejected, why):
    response = service.ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = rejected
    response.partial_success.error_message = why
    return lambda handler: handler.reply(200, response.SerializeToString())


def refused(status, why, **headers):
    message = status_pb2.Status(code=3, message=why).SerializeToString()
    return lambda handler: handler.reply(status, message, **headers)


def page(handler):
    handler.reply(200, b"<html>It works!</html>", kind="text/html")


def hang_up(handler):
    handler.close_connection = True


def garbage(handler):
    handler.connection.sendall(b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0d" * 10)
    handler.close_connection = True


def slow(handler):
    """Takes all its time; says nothing."""
    handler.server.ended.wait(30)
    handler.close_connection = True


def endless(handler):
    """An answer that does not end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/x-protobuf")
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()
    end = time.monotonic() + 10
    try:
        while time.monotonic() < end:
            handler.wfile.write(b"\0" * 65536)
    except OSError:
        pass
    handler.close_connection = True

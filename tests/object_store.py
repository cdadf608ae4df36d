"""An object store that speaks as much of S3 as Arrow's file system asks for, on this machine and in memory.

As in any such store an object is written whole or not at all; nothing is appended to it and nothing is renamed.
"""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape


class ObjectStore(ThreadingHTTPServer):
    """Holds `objects` by their key, `bucket/path`, with "bucket" as the only bucket; `requests` are those that changed
    something."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.refuses = lambda key: False  # whether writing the object of this key fails
        self.lock = threading.Lock()

    def address(self, place: str) -> str:
        host, port = self.server_address
        endpoint = quote(f"{host}:{port}", safe="")
        return f"s3://id:secret@{place}?scheme=http&endpoint_override={endpoint}&region=here"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A store that serves as long as the block lasts."""
    with ObjectStore() as store:
        thread = threading.Thread(target=store.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer is one packet
    server: ObjectStore

    def handle_expect_100(self) -> bool:
        goes_on = super().handle_expect_100()
        self.wfile.flush()
        return goes_on

    def do_HEAD(self) -> None:
        if self.key in self.server.objects:
            self.answer(200, self.server.objects[self.key])
        else:
            self.answer(200 if self.key == "bucket" else 404)

    def do_GET(self) -> None:
        if "list-type" in self.query or "/" not in self.key.strip("/"):
            self.list()
        elif self.key not in self.server.objects:
            self.fail(404, "NoSuchKey")
        else:
            content = self.server.objects[self.key]
            if span := self.headers.get("Range"):
                first, last = span.removeprefix("bytes=").split("-")
                end = min(int(last or len(content)), len(content) - 1)
                where = {"Content-Range": f"bytes {first}-{end}/{len(content)}"}
                self.answer(206, content[int(first) : end + 1], where)
            else:
                self.answer(200, content)

    def do_PUT(self) -> None:
        body = self.body()
        if self.server.refuses(self.key):
            self.fail(403, "AccessDenied")
        elif "uploadId" in self.query:
            self.server.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = body
            self.answer(200, headers={"ETag": '"part"'})
        else:
            self.store(body)
            self.answer(200, headers={"ETag": '"object"'})

    def do_POST(self) -> None:
        body = self.body()
        bucket = self.key.split("/")[0]
        if "delete" in self.query:
            for node in ElementTree.fromstring(body).iter():
                if node.tag.endswith("Key"):
                    self.delete(f"{bucket}/{node.text}")
            self.answer(200, b"<DeleteResult/>")
        elif "uploads" in self.query:
            upload = uuid.uuid4().hex
            self.server.uploads[upload] = {}
            name = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            self.answer(200, name.encode())
        else:
            parts = self.server.uploads.pop(self.query["uploadId"])
            self.store(b"".join(parts[number] for number in sorted(parts)))
            result = '<CompleteMultipartUploadResult><ETag>"object"</ETag></CompleteMultipartUploadResult>'
            self.answer(200, result.encode())

    def do_DELETE(self) -> None:
        self.delete(self.key)
        self.answer(204)

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path)[1:]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}

    def store(self, content: bytes) -> None:
        with self.server.lock:
            self.server.requests.append(f"PUT {self.key}")
            self.server.objects[self.key] = content

    def delete(self, key: str) -> None:
        with self.server.lock:
            self.server.requests.append(f"DELETE {key}")
            self.server.objects.pop(key, None)

    def list(self) -> None:
        bucket, prefix, delimiter = self.key.strip("/"), self.query.get("prefix", ""), self.query.get("delimiter", "")
        folders: set[str] = set()
        entries = []
        with self.server.lock:
            found = {key.removeprefix(f"{bucket}/"): len(text) for key, text in self.server.objects.items()}
        for name in sorted(name for name in found if name.startswith(prefix)):
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                entries.append(f"<Contents><Key>{escape(name)}</Key><Size>{found[name]}</Size></Contents>")
        common = [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        count = f"<KeyCount>{len(entries) + len(common)}</KeyCount><IsTruncated>false</IsTruncated>"
        result = f"<ListBucketResult><Name>{bucket}</Name>{count}{''.join(entries + common)}</ListBucketResult>"
        self.answer(200, result.encode())

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = _unchunked(self.rfile)
        is_signed = "aws-chunked" in self.headers.get("Content-Encoding", "")
        return _unchunked(io.BytesIO(content)) if is_signed else content

    def fail(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _unchunked(stream: BinaryIO) -> bytes:
    """What was sent in chunks, each after a line with its size, without what trails the last, empty one."""
    chunks = []
    while size := int(stream.readline().split(b";")[0], 16):
        chunks.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(chunks)

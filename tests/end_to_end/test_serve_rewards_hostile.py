"""Clients that mean harm, against the real reward server: each gets a 4xx or loses its connection, and the server scores right after."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save

from mmrl.errors import ConfigError, UserError
from mmrl.rewards.remote.serve import load, serve
from tests.end_to_end.reward_server import Server

TOKEN = "a-token-for-tests"
JSON = {"Content-Type": "application/json"}
LIMIT, BODY_SECONDS, MOST_WAITING = 400_000, 2, 12
CLIENT = httpx.Client(trust_env=False)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "media").mkdir()
    (folder / "media-of-others").mkdir()
    for place in ("secret.png", "media/ok.png", "media-of-others/secret.png"):
        (folder / place).write_bytes(png(4, 4))
    (folder / "media" / "link.png").symlink_to(folder / "secret.png")
    (folder / "media" / "folder").symlink_to(folder)
    (folder / "media" / "inside.png").symlink_to("ok.png")
    (folder / "media" / "circle.png").symlink_to("circle.png")
    (folder / "media" / "large.png").write_bytes(b"x" * (LIMIT + 1))
    os.mkfifo(folder / "media" / "pipe.png")
    more = (
        f", max_bytes: {LIMIT}, max_pixels: 1000000, max_decoded: 5000000, max_batch: 8, media_root: media"
        f", body_seconds: {BODY_SECONDS}, max_waiting: {MOST_WAITING}"
    )
    server = Server(folder, more, {"MMRL_REWARD_TOKEN": TOKEN})
    server.start()
    server.wait()
    yield server
    server.kill()


def png(width: int, height: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 9, 9)).save(buffer, format="PNG")
    return buffer.getvalue()


def bomb(side: int, said: int | None = None) -> bytes:
    """A PNG of a few kilobytes that unpacks to side x side pixels, and says that it has `said` x `said`."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" * (1 + (side + 7) // 8)) * side, 9)
    head = struct.pack(">IIBBBBB", said or side, said or side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", rows) + piece(b"IEND", b"")


def with_exif(*tags: tuple[int, int, int, int]) -> bytes:
    """A PNG with EXIF tags (number, type, count, value or offset)."""
    from PIL import Image

    exif = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(buffer, format="PNG", exif=b"Exif\0\0" + exif)
    return buffer.getvalue()


def b64(contents: bytes) -> str:
    return base64.b64encode(contents).decode()


def request(*media: dict[str, Any], **medium: Any) -> dict[str, Any]:
    """A request about one sample with one good picture, or with `media`."""
    found = [{"kind": "image", "mime": "image/png"} | one for one in (media or (medium,))]
    for own in found:
        if not {"data", "uri", "part"} & set(own):
            own["data"] = b64(png(4, 4))
    return of({"id": "0", "prompt": "x", "media": found})


def of(*samples: dict[str, Any]) -> dict[str, Any]:
    return {
        "protocol": "mmrl-reward/1",
        "request_id": os.urandom(8).hex(),
        "reward": "bright",
        "samples": list(samples),
    }


def post(server: Server, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
    return CLIENT.post(f"{server.url}/v1/score", headers=headers, timeout=30, **options)


def tensors(**medium: Any) -> dict[str, Any]:
    return request(kind="video", mime="application/vnd.safetensors", **medium)


def parts(count: int) -> dict[str, Any]:
    """A multipart body of many small parts."""
    piece = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{i}"; filename="f"\r\n\r\n1\r\n' for i in range(count)
    )
    return {"content": (piece + "--x--\r\n").encode(), "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


def multipart(*files: tuple[str, bytes]) -> dict[str, Any]:
    return {"files": [(name, (name, contents, "application/octet-stream")) for name, contents in files]}


def raw(contents: bytes, kind: str = "application/json") -> dict[str, Any]:
    return {"content": contents, "headers": {"Content-Type": kind}}


def with_text(text: str) -> dict[str, Any]:
    """A good request with `text` put where its meta is."""
    return raw(json.dumps(request()).replace('"prompt": "x"', f'"prompt": "x", "meta": {{"a": {text}}}').encode())


def chunked(count: int) -> dict[str, Any]:
    """A body of unknown length: httpx sends it in chunks."""
    return {"content": (b"x" * 50_000 for _ in range(count)), "headers": JSON}


many = [{"id": str(i), "prompt": "", "media": []} for i in range(9)]
whole = json.dumps(request(part="p")).encode()
field = b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n\\ud83d\r\n--x--\r\n'
endless = json.dumps({"video": {"dtype": "U8", "shape": [1 << 63, 0, 0, 0], "data_offsets": [0, 0]}}).encode()
header = json.dumps({"video": {"dtype": "U8", "shape": [1, 2, 2, 3], "data_offsets": [0, 12_000_000]}}).encode()
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "no token": (401, {"json": request(), "headers": {"Authorization": ""}}),
    "wrong token": (401, {"json": request(), "headers": {"Authorization": "Bearer no"}}),
    "token of another length": (401, {"json": request(), "headers": {"Authorization": f"Bearer {TOKEN}x"}}),
    "token without its scheme": (401, {"json": request(), "headers": {"Authorization": TOKEN}}),
    "token in bytes": (401, {"json": request(), "headers": {"Authorization": b"Bearer \xff\xfe"}}),
    "no token, oversized": (401, {**chunked(10), "headers": JSON | {"Authorization": ""}}),
    "oversized body": (413, {"json": request(data=b64(b"x" * 500_000))}),
    "oversized stream": (413, chunked(10)),
    "oversized multipart": (413, multipart(("request", whole), ("p", b"x" * 500_000))),
    "zip bomb": (400, {"json": request(data=b64(bomb(5_000)))}),
    "a size that is a lie": (400, {"json": request(data=b64(bomb(8, said=60_000)))}),
    "many pictures that are large together": (400, {"json": request(*[{"data": b64(bomb(900))}] * 3)}),
    "path traversal": (400, {"json": request(uri="../secret.png")}),
    "traversal through a folder": (400, {"json": request(uri="../media/../secret.png")}),
    "a folder whose name begins alike": (400, {"json": request(uri="../media-of-others/secret.png")}),
    "absolute path": (400, {"json": request(uri="/etc/passwd")}),
    "file URL": (400, {"json": request(uri="file:///etc/passwd")}),
    "encoded traversal": (400, {"json": request(uri="file://../secret.png")}),
    "symbolic link": (400, {"json": request(uri="link.png")}),
    "symbolic link to a folder": (400, {"json": request(uri="folder/secret.png")}),
    "zero byte in a path": (400, {"json": request(uri="ok.png\0.png")}),
    "very long path": (400, {"json": request(uri="a/" * 50_000)}),
    "other server": (400, {"json": request(uri="http://127.0.0.1/ok.png")}),
    "links in a circle": (400, {"json": request(uri="circle.png")}),
    "a pipe": (400, {"json": request(uri="pipe.png")}),
    "a folder": (400, {"json": request(uri=".")}),
    "large file": (400, {"json": request(uri="large.png")}),
    "pickle body": (400, raw(pickle.dumps({"a": 1}), "application/octet-stream")),
    "pickle as json": (400, raw(pickle.dumps({"a": 1}))),
    "pickle as picture": (400, {"json": request(data=b64(pickle.dumps({"a": 1})))}),
    "pickle as tensors": (400, {"json": tensors(data=b64(pickle.dumps({"a": 1})))}),
    "torch file as tensors": (400, {"json": tensors(data=b64(b"PK\x03\x04" + b"x" * 100))}),
    "no content type": (400, {"content": json.dumps(request()).encode()}),
    "text content type": (400, raw(json.dumps(request()).encode(), "text/plain")),
    "form content type": (400, raw(b"a=1", "application/x-www-form-urlencoded")),
    "no body": (400, raw(b"")),
    "half a JSON": (400, raw(json.dumps(request()).encode()[:-10])),
    "JSON of another kind": (400, raw(b"[1, 2]")),
    "broken UTF-8": (400, raw(b'{"protocol": "\xff\xfe"}')),
    "deep lists": (400, raw(b"[" * 100_000)),
    "deep objects": (400, raw(b'{"a":' * 30_000)),
    "deep meta": (400, with_text("[" * 5_000 + "]" * 5_000)),
    "NaN in meta": (400, with_text("NaN")),
    "NaN deep in meta": (400, with_text('{"b": [1, {"c": NaN}]}')),
    "infinity in meta": (400, with_text("-Infinity")),
    "NaN frames per second": (400, raw(json.dumps(request(fps=float("nan"))).encode())),
    "infinite frames per second": (400, raw(json.dumps(request(fps=float("inf"))).encode())),
    "no frames per second": (400, {"json": request(fps=0)}),
    "unknown reward": (422, {"json": request() | {"reward": "other"}}),
    "unknown field": (400, {"json": request() | {"extra": 1}}),
    "unknown field of a sample": (400, {"json": of({"id": "0", "prompt": "", "extra": 1})}),
    "unknown field of a medium": (400, {"json": request(extra=1)}),
    "many unknown fields": (400, {"json": request() | {f"x{i}": 1 for i in range(10_000)}}),
    "many wrong samples": (413, {"json": request() | {"samples": [1] * 60_000}}),
    "too many media": (413, raw(json.dumps(of({"id": "0", "prompt": "", "media": [{}] * 5000})).encode())),
    "other protocol": (400, {"json": request() | {"protocol": "mmrl-reward/9"}}),
    "options": (400, {"json": request() | {"options": {"log": "/tmp/x"}}}),
    "no samples": (400, {"json": of()}),
    "too many samples": (413, {"json": of(*many)}),
    "an id twice": (400, {"json": of(*[{"id": "0", "prompt": ""}] * 2)}),
    "a long id": (400, {"json": of({"id": "x" * 201, "prompt": ""})}),
    "a long request id": (400, {"json": request() | {"request_id": "x" * 201}}),
    "a turned picture with a broken tag": (400, {"json": request(data=b64(with_exif((0x112, 3, 1, 6), (0x100, 2, 1, 8))))}),
    "a tag without a text": (400, {"json": request(data=b64(with_exif((0x112, 3, 1, 6), (0x10E, 12, 1, 8))))}),
    "no picture": (400, {"json": request(data=b64(b"GIF89a"))}),
    "JPEG that says PNG": (400, {"json": request(data=b64(b"\xff\xd8\xff\xe0" + b"x" * 50))}),
    "a program": (400, {"json": request(mime="application/x-python")}),
    "not base64": (400, {"json": request(data="%%%")}),
    "base64 of other letters": (400, {"json": request(data="\u20ac\u20ac\u20ac\u20ac")}),
    "two ways": (400, {"json": request(data="", uri="ok.png")}),
    "broken safetensors": (400, {"json": tensors(data=b64(b"\xff" * 64))}),
    "safetensors with a huge header": (400, {"json": tensors(data=b64(struct.pack("<Q", 1 << 62) + b"{}"))}),
    "safetensors that say more than they have": (400, {"json": tensors(data=b64(struct.pack("<Q", len(header)) + header))}),
    "safetensors of a size that no number holds": (400, {"json": tensors(data=b64(struct.pack("<Q", len(endless)) + endless))}),
    "a video of floats": (400, {"json": tensors(data=b64(save({"video": torch.zeros(1, 2, 2, 3)})))}),
    "a video without frames": (400, {"json": tensors(data=b64(save({"video": torch.zeros(0, 2, 2, 3).byte()})))}),
    "two videos": (400, {"json": request(*[{"kind": "video", "mime": "application/vnd.safetensors",
                                             "data": b64(save({"video": torch.zeros(1, 2, 2, 3).byte()}))}] * 2)}),
    "a broken mp4": (400, {"json": request(kind="video", mime="video/mp4", data=b64(b"\0\0\0\x18ftypmp42" + b"x" * 90)),}),
    "a playlist as mp4": (400, {"json": request(kind="video", mime="video/mp4", data=b64(b"ffconcat version 1.0\nfile ok.mp4\n"))}),
    "missing part": (400, {"json": request(part="p")}),
    "broken multipart": (400, raw(b"--x\r\n", "multipart/form-data; boundary=x")),
    "multipart without boundary": (400, raw(b"--x\r\n", "multipart/form-data")),
    "a charset for half a character": (400, raw(field, "multipart/form-data; boundary=x; charset=unicode_escape")),
    "a charset that is none": (400, raw(field, "multipart/form-data; boundary=x; charset=undefined")),
    "thousands of parts": (400, parts(5000)),  # of 70 bytes each, so that they fit into the limit
    "thousands of fields": (400, raw(parts(5000)["content"].replace(b'; filename="f"', b""), "multipart/form-data; boundary=x")),
    "no request part": (400, multipart(("p", png(4, 4)))),
    "a part twice": (400, multipart(("request", whole), ("p", png(4, 4)), ("p", png(4, 4)))),
    "two requests": (400, multipart(("request", whole), ("request", whole), ("p", png(4, 4)))),
}  # fmt: skip

SAYS = {
    "zip bomb": "5000x5000 pixels; at most 1000000",
    "a size that is a lie": "decompression bomb",
    "many pictures that are large together": "more than 5000000 bytes when decoded",
    "symbolic link": "no file below the allowed folder",
    "links in a circle": "no file below the allowed folder",
    "a turned picture with a broken tag": "not a readable image/png",
    "safetensors of a size that no number holds": "not safetensors",
    "a playlist as mp4": "does not begin as one",
    "a charset that is none": "not of its charset",
    "large file": "larger than 400000 bytes",
    "deep meta": "recursion limit",
    "NaN deep in meta": "not JSON",
    "thousands of parts": "Too many files",
    "thousands of fields": "Too many fields",
    "a part twice": "two parts 'p'",
    "many unknown fields": "unknown field 'x0'",
    "torch file as tensors": "not safetensors",
    "broken safetensors": "not safetensors",
    "safetensors that say more than they have": "not safetensors",
    "options": "options",
}


@pytest.mark.parametrize("name", CASES)
def test_harm_is_a_4xx_and_the_next_request_is_scored(guarded: Server, name: str) -> None:
    wanted, options = CASES[name]
    reply = post(guarded, **options)
    assert reply.status_code == wanted, reply.text[:300]
    said = reply.json()["error"]["message"]
    assert said and SAYS.get(name, "") in said
    lives(guarded)


def lives(server: Server) -> None:
    good = post(server, json=request(uri="inside.png"))
    assert (
        server.alive
        and good.status_code == 200
        and good.json()["results"] == [{"id": "0", "status": "ok", "score": 9.0}]
    )


def test_what_may_be_sent_is_taken(guarded: Server) -> None:
    for options in ({"json": request()}, {"json": request(uri="ok.png")}, {"json": request() | {"options": {}}},
                    multipart(("request", whole), ("p", png(4, 4)))):  # fmt: skip
        assert post(guarded, **options).json()["results"][0]["score"] == 9.0
    body = request()
    assert post(guarded, json=body).json() == post(guarded, json=body).json()  # with the time that the first one took
    assert post(guarded, json=body | {"samples": [{"id": "9", "prompt": "y"}]}).status_code == 409
    mixed = of({"id": "0", "prompt": "a"}, {"id": "1", "prompt": "b"}) | {"reward": "above"}
    reply = post(guarded, json=mixed)
    assert reply.status_code == 400 and "group '0' holds samples of different prompts" in reply.text


def test_every_path_but_healthz_wants_the_token(guarded: Server) -> None:
    for path, with_token, without in (("/healthz", 200, 200), ("/readyz", 200, 401), ("/v1/info", 200, 401),
                                      ("/docs", 404, 401), ("/openapi.json", 404, 401), ("/v1/score", 405, 401)):  # fmt: skip
        found = CLIENT.get(guarded.url + path, headers={"Authorization": f"Bearer {TOKEN}"})
        assert found.status_code == with_token
        assert CLIENT.get(guarded.url + path).status_code == without


def opened(server: Server, sent: bytes) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    found.sendall(sent)
    return found


def heading(length: str, token: str = TOKEN, more: str = "") -> bytes:
    return (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        f"{length}\r\n{more}\r\n"
    ).encode()


def until_closed(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(4096):
        found += piece
    return found


def test_half_a_body_is_waited_for_a_while_and_holds_nobody_up(guarded: Server) -> None:
    slow = [opened(guarded, heading("Content-Length: 1000") + b'{"protocol') for _ in range(MOST_WAITING)]
    for connection in slow:
        found = until_closed(connection)
        assert found.startswith(b"HTTP/1.1 408 ") and b"longer than 2 seconds" in found
    lives(guarded)


def test_what_comes_in_drops_is_no_excuse(guarded: Server) -> None:
    """A body, the head of a first and of a second request, and a body that was refused."""
    dropped = [
        (heading("Content-Length: 100000"), b" ", b" 408 "),
        (b"", b"A", b""),
        (b"POST /v1/score HTTP/1.1\r\nHost:", b"x", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + b"POST /v1/score HTTP/1.1\r\nHost:", b"x", b" 200 "),
        (heading("Content-Length: 100000", "wrong"), b" ", b" 401 "),
    ]
    open_ones = [(opened(guarded, first), drop, status) for first, drop, status in dropped]
    said = dict.fromkeys(range(len(open_ones)), b"")
    closed: set[int] = set()
    end = time.monotonic() + 60
    while len(closed) < len(open_ones) and time.monotonic() < end:
        time.sleep(0.1)
        for number in set(said) - closed:
            connection, drop, _ = open_ones[number]
            try:
                connection.setblocking(False)
                while piece := connection.recv(4096):
                    said[number] += piece
                closed.add(number)
            except BlockingIOError:
                connection.setblocking(True)
                connection.send(drop)
            except OSError:
                closed.add(number)
    assert len(closed) == len(open_ones)
    for number, (_, _, status) in enumerate(open_ones):
        assert status in said[number][:20] and bool(status) == bool(said[number])
    lives(guarded)


def test_an_empty_connection_is_closed(guarded: Server) -> None:
    assert until_closed(opened(guarded, b"")) == b""


def test_a_picture_does_not_fill_the_log(guarded: Server) -> None:
    before = guarded.said.stat().st_size
    picture = with_exif(*((0x9000 + i, 7, 1000, 8) for i in range(500)))
    assert post(guarded, json=request(data=b64(picture))).json()["results"][0]["score"] == 9.0
    assert guarded.said.stat().st_size == before


@pytest.mark.parametrize(
    "length",
    ["Content-Length: -1", "Content-Length: 1e9", "Content-Length: 5\r\nContent-Length: 6", "Transfer-Encoding: gzip, chunked",
     "Content-Length: " + "9" * 19, "X: " + "y" * 200_000, "A\0: b"],
)  # fmt: skip
def test_headings_that_are_none(guarded: Server, length: str) -> None:
    try:
        found = until_closed(opened(guarded, heading(length, more="Connection: close\r\n")))
        assert found[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 431", b"HTTP/1.1 501")
    except ConnectionResetError:
        pass
    lives(guarded)


def test_a_client_that_goes_away_early(guarded: Server) -> None:
    for sent in (
        heading("Content-Length: 1000") + b"{",
        heading("Content-Length: 1000"),
        b"\x16\x03\x01\x02",
        b"\0" * 100,
    ):
        opened(guarded, sent).close()
    lives(guarded)
    assert "Traceback" not in guarded.said.read_text()


def test_more_than_may_wait_are_told_when_to_come_again(guarded: Server) -> None:
    slow = [opened(guarded, heading("Content-Length: 10")) for _ in range(MOST_WAITING)]
    try:
        while (busy := post(guarded, json=request())).status_code == 200:
            slow.append(opened(guarded, heading("Content-Length: 10")))  # one may have met a request of ours
        assert busy.status_code == 503 and busy.headers["Retry-After"] == "1" and busy.json()["error"]["retryable"]
        assert CLIENT.get(f"{guarded.url}/healthz").status_code == 200
    finally:
        for connection in slow:
            connection.close()


def test_a_server_for_others_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMRL_REWARD_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"0\.0\.0\.0 can be reached by others, so a bearer token is needed"):
        serve(str(Server(tmp_path, ", host: 0.0.0.0").config))


def test_problems_of_a_config_have_their_line(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("rewards:\n  a: {name: jpeg_compressibilty}\nserve: {prot: 1}\n")
    with pytest.raises(ConfigError, match=r"serve\.yaml:3: serve\.prot"):
        load(str(tmp_path / "serve.yaml"))


def test_a_token_that_no_header_can_hold(tmp_path: Path) -> None:
    server = Server(tmp_path, env={"MMRL_REWARD_TOKEN": "secret\nX-Other: 1"})
    command = [sys.executable, "-m", "mmrl", "serve-rewards", str(server.config)]
    found = subprocess.run(command, env=server.env, capture_output=True, text=True, timeout=120)
    said = found.stderr + found.stdout
    assert found.returncode == 2 and "token in MMRL_REWARD_TOKEN has blanks" in said and "secret" not in said

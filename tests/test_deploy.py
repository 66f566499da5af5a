"""The client's request is the one that TF Serving's REST API takes for the signature `rank`."""

import http.server
import importlib.util
import json
import pathlib
import threading

CLIENT = pathlib.Path(__file__).resolve().parents[1] / "deploy" / "client.py"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as TF Serving does, with fixed scores, and keeps what it received."""

    def do_POST(self):
        self.server.received.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        body = json.dumps({"predictions": [{"scores": [0.25, 0.75, 0.5], "order": [1, 2, 0]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_client_sends_item_ids_alone_and_returns_candidates_best_first():
    spec = importlib.util.spec_from_file_location("client", CLIENT)
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.received = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1/models/shop"
        ranked = client.rank(url, ["i9", "i8"], ["a", "b", "c"])
        server.shutdown()
    assert ranked == [("b", 0.75), ("c", 0.5), ("a", 0.25)]
    instance = {"history_item_ids": ["i9", "i8"], "candidate_item_ids": ["a", "b", "c"]}
    assert server.received == [
        ("/v1/models/shop:predict", {"signature_name": "rank", "instances": [instance]}),
    ]

"""Ranks candidates for one user by a served model, over REST, with the standard library alone.

Usage: python deploy/client.py http://localhost:8501/v1/models/ranker HISTORY CANDIDATES
with item ids separated by commas, the history latest first. Append /versions/N to the URL to ask one version.
"""

import json
import sys
import urllib.error
import urllib.request


def rank(url: str, history: list[str], candidates: list[str]) -> list[tuple[str, float]]:
    """Candidates and their scores, best first.

    Raises:
        ValueError: the server refuses the request; the message is the server's.
    """
    instance = {"history_item_ids": history, "candidate_item_ids": candidates}
    body = json.dumps({"signature_name": "rank", "instances": [instance]}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}:predict", body), timeout=10) as response:
            prediction = json.load(response)["predictions"][0]
    except urllib.error.HTTPError as error:
        raise ValueError(error.read().decode(errors="replace")) from error
    return [(candidates[n], prediction["scores"][n]) for n in prediction["order"]]


if __name__ == "__main__":
    for item_id, score in rank(sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")):
        print(f"{score:.4f}  {item_id}")

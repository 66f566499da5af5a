"""A request to the served model, with the standard library alone: scores two candidates for one user.

Usage: python deploy/request.py http://localhost:8501/v1/models/quickstart
"""

import json
import sys
import urllib.request

HISTORY, CATEGORIES = 20, 4  # data.sizes of the configuration


def pad(values: list[str], length: int) -> list[str]:
    """Cuts or fills with empty strings to `length`."""
    return (values + [""] * length)[:length]


def row(candidate: dict, history: list[dict]) -> dict:
    """One instance of the signature `raw`; `history` is latest first."""
    items = history[:HISTORY] + [{"id": "", "categories": [], "brand": ""}] * max(0, HISTORY - len(history))
    return {
        "item_id": candidate["id"],
        "item_categories": pad(candidate["categories"], CATEGORIES),
        "item_brand": candidate["brand"],
        "history_item_ids": [item["id"] for item in items],
        "history_categories": [pad(item["categories"], CATEGORIES) for item in items],
        "history_brands": [item["brand"] for item in items],
    }


def main() -> None:
    """Sends the request and prints the answer."""
    toy_story = {"id": "1", "categories": ["Animation", "Children's", "Comedy"], "brand": ""}
    aladdin = {"id": "95", "categories": ["Animation", "Children's", "Comedy", "Musical"], "brand": ""}
    alien = {"id": "183", "categories": ["Action", "Horror", "Sci-Fi", "Thriller"], "brand": ""}
    body = {"signature_name": "raw", "instances": [row(aladdin, [toy_story]), row(alien, [toy_story])]}
    request = urllib.request.Request(f"{sys.argv[1]}:predict", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as response:
        print(response.read().decode())


if __name__ == "__main__":
    main()

# mypy: disable-error-code="import-not-found,misc"
"""A target on the Singer SDK that posts batches of JSON Lines to a backend.

Runs in an environment of its own, with `singer-sdk` in it.
"""

from __future__ import annotations

import json
from typing import Any

import requests
from singer_sdk import BatchSink, Target
from singer_sdk import typing as th


class PostSink(BatchSink):
    """A POST for each batch."""

    max_size = 10_000

    def process_batch(self, context: dict[str, Any]) -> None:
        """Send the records that were gathered."""
        body = "".join(json.dumps(record) + "\n" for record in context["records"])
        requests.post(
            f"{self.config['url']}/singer", data=body.encode(), timeout=60
        ).raise_for_status()


class PostTarget(Target):
    """The target."""

    name = "target-post"
    config_jsonschema = th.PropertiesList(
        th.Property("url", th.StringType, required=True)
    ).to_dict()
    default_sink_class = PostSink


if __name__ == "__main__":
    PostTarget.cli()

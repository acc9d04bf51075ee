"""Where TensorStore finds a checkpoint's files: a disk, or an object store as fsspec knows it. No JAX here."""

import os
from typing import Any

from lm.storage import filesystem, is_remote

# A store that does not answer is said within seconds: TensorStore's own 32 tries take ten minutes.
_RETRIES = {"max_retries": 5, "initial_delay": "200ms", "max_delay": "2s"}
CONTEXT = {
    "cache_pool#ocdbt": {"total_bytes_limit": 64 << 20},  # nodes of the B-trees are read once
    "s3_request_retries": _RETRIES,
    "gcs_request_retries": _RETRIES,
}

# How TensorStore's errors begin that say nothing about the files.
_NO_ANSWER = ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "CANCELLED")


def ocdbt(folder: str, name: str) -> dict[str, Any]:
    """Return the specification of one array's key-value store in the OCDBT database of an item's folder."""
    return {"driver": "ocdbt", "base": _base(folder), "path": f"{name}/", "cache_pool": "cache_pool#ocdbt"}


def _base(folder: str) -> str | dict[str, Any]:
    if not is_remote(folder):  # TensorStore wants a normalized path: no `./`, no `..`
        return {"driver": "file", "path": f"{os.path.abspath(folder)}/"}
    scheme, _, rest = folder.partition("://")
    if scheme != "s3":
        return f"{folder}/"
    # TensorStore does not read $AWS_ENDPOINT_URL, nor fsspec's configuration.
    fs = filesystem(folder)
    endpoint = getattr(fs, "endpoint_url", None) or (getattr(fs, "client_kwargs", None) or {}).get("endpoint_url")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    bucket, _, path = rest.partition("/")
    base: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": f"{path}/"}
    if endpoint:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        base |= {"endpoint": endpoint.rstrip("/"), "aws_region": region}
    if getattr(fs, "anon", False):
        base["aws_credentials"] = {"type": "anonymous"}
    elif "AWS_ACCESS_KEY_ID" in os.environ:  # else AWS's own search, which reports each file that is not there
        base["aws_credentials"] = {"type": "environment"}
    return base


def got_no_answer(error: Exception) -> bool:
    """True if the store could not be asked, so that nothing is known about the files."""
    return str(error).startswith(_NO_ANSWER)

"""What a storage's refusal or silence means, in words for the user and for who runs the server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, cast

from polypod.errors import Unavailable

RETRY_AFTER_S = 30

_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (docs/storage.md) and start again."
_REGION = (
    "Set POLYPOD_STORAGE_REGION to the bucket's region, and POLYPOD_STORAGE_ENDPOINT to match."
)
_CLOCK = "Set this machine's clock (turn NTP on) and start again."

_REFUSED = {
    "AccessDenied": ("the key may not do this ({permission})", "Allow it: docs/storage.md."),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _REGION),
    "ExpiredToken": ("the temporary credentials have expired", _KEYS),
    "IllegalLocationConstraintException": ("the bucket is in another region", _REGION),
    "InvalidAccessKeyId": ("it does not know the access key", _KEYS),
    "InvalidBucketName": ("that is no name of a bucket", "Correct POLYPOD_STORAGE."),
    "InvalidToken": ("it does not know the session token", _KEYS),
    "NoSuchBucket": (
        "there is no such bucket",
        "Create it, or correct POLYPOD_STORAGE and POLYPOD_STORAGE_ENDPOINT.",
    ),
    "PermanentRedirect": ("the bucket is in another region", _REGION),
    "QuotaExceeded": ("its quota is used up", "Free some space in it, or raise its quota."),
    "RequestExpired": ("the clocks differ by {skew}", _CLOCK),
    "RequestTimeTooSkewed": ("the clocks differ by {skew}", _CLOCK),
    "SignatureDoesNotMatch": ("the secret key does not belong to the access key", _KEYS),
}
"""Code of a refusal that no repetition changes: why, and what to do."""

_SAME = {
    "301": "PermanentRedirect",
    "403": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "InvalidSecurity": "InvalidAccessKeyId",
    "TemporaryRedirect": "PermanentRedirect",
    "TokenRefreshRequired": "ExpiredToken",
    "Unauthorized": "AccessDenied",
    "UnrecognizedClientException": "InvalidAccessKeyId",
    "XMinioStorageFull": "QuotaExceeded",
}

CHANGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch"})
"""What arrived was not what was sent."""

_FAILED = {
    **dict.fromkeys(CHANGED, "what arrived there was not what was sent"),
    "429": "it is asked too often",
    "500": "it failed inside",
    "503": "it is asked too often",
    "InternalError": "it failed inside",
    "RequestTimeout": "the file did not arrive there in time",
    "ServiceUnavailable": "it is asked too often",
    "SlowDown": "it is asked too often",
}

_PERMISSIONS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}

_BROKEN = {
    "ConnectTimeoutError": "no connection came about in time",
    "ConnectionClosedError": "the connection broke off",
    "EndpointConnectionError": "it cannot be reached",
    "IncompleteReadError": "the connection broke off",
    "ProxyConnectionError": "the proxy on the way to it cannot be reached",
    "ReadTimeoutError": "it did not answer in time",
    "ResponseStreamingError": "the connection broke off",
    "SSLError": "its certificate cannot be trusted",
}


def error_code(error: BaseException) -> str:
    """What the storage called its refusal; empty where it said nothing."""
    answer = cast(Mapping[str, Any], getattr(error, "response", None) or {})
    return str(answer.get("Error", {}).get("Code", ""))


def explain(error: BaseException, bucket: str, where: str) -> Unavailable:
    """The error in words. No key, signature or URL is in them."""
    who = f"The storage (bucket {bucket!r} at {where})"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        return Unavailable(f"{who} cannot be asked: there are no credentials for it.", _KEYS)
    code = error_code(error)
    refused = _REFUSED.get(_SAME.get(code, code))
    if refused:
        why, hint = refused
        operation = str(getattr(error, "operation_name", ""))
        permission = _PERMISSIONS.get(operation, operation)
        why = why.format(permission=permission, skew=_skew(error))
        return Unavailable(f"{who} refused: {why}.", hint)
    broken = next((words for name, words in _BROKEN.items() if name in kinds), "")
    why = _FAILED.get(code) or broken or code or type(error).__name__
    return Unavailable(
        f"{who} failed, also when asked again: {why}.",
        "Try again in a minute. Who runs this server: see whether the storage works, and whether"
        " POLYPOD_STORAGE_ENDPOINT is right.",
        retry_after_s=RETRY_AFTER_S,
    )


def _skew(error: BaseException) -> str:
    """How far apart the clocks are, from the refusal's own date."""
    answer = cast(Mapping[str, Any], getattr(error, "response", None) or {})
    date = str(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))
    try:
        skew_s = time.time() - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return "too much"
    return f"{abs(skew_s) / 60:.0f} minutes"

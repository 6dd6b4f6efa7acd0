"""Webhooks: a signed POST to a job's `webhook_url` once it has ended.

Receivers need one function of it: `verify(body, header, secret)`.
"""

from polypod.webhooks.signature import sign, verify

__all__ = ["sign", "verify"]

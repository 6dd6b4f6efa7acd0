"""Input pictures: loading, fetching and decoding what strangers send, safely.

`picture.check_picture` vets bytes, `fetch.fetch` gets them from a URL, `encoding.decode_base64`
from JSON. Each is imported from its module; Pillow and httpx load with their first use.
"""

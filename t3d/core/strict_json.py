"""JSON as people write and other programs export it, refused where a reader would have to guess."""

import collections
import json
import re

from t3d.core import text
from t3d.core.errors import UsageError

_SURROGATE = re.compile('[\ud800-\udfff]')


def loads(data: bytes, where: str):
    """The value of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark; NaN passes, as Python writes it.

    Args:
      where: what the file is called in messages.
    Raises:
      UsageError: no JSON, another encoding, a key given twice, half a surrogate pair, nesting beyond reason.
    """
    written = text.strict(data, f'{where} is no JSON', json.detect_encoding(data).removesuffix('-sig'))

    def pairs(items: list[tuple]) -> dict:
        table = dict(items)
        if len(table) < len(items):
            counts = collections.Counter(key for key, _ in items)
            raise UsageError(f'{where} has the key {counts.most_common(1)[0][0]!r} twice in one place: keep one of them.')
        return table

    try:
        value = json.loads(written, object_pairs_hook=pairs)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f'{where} is no JSON ({error}).') from error
    except RecursionError as error:
        raise UsageError(f'{where} is no JSON of ours: it is nested too deeply.') from error
    if re.search(r'\\u[dD][89a-fA-F]', written):
        _refuse_surrogates(value, where)
    return value


def _refuse_surrogates(value, where: str) -> None:
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise UsageError(f'{where} holds {ascii(value[:60])}, half of a surrogate pair: write the character itself.')
    elif isinstance(value, dict):
        for part in (*value, *value.values()):
            _refuse_surrogates(part, where)
    elif isinstance(value, list):
        for part in value:
            _refuse_surrogates(part, where)

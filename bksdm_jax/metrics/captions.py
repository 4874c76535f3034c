"""Cleans captions as OpenCLIP's tokenizer does before it encodes them."""

import html
import re
import unicodedata

_QUOTES = {**dict.fromkeys(range(0x2018, 0x201C), "'"), 0x02BC: "'", **dict.fromkeys(range(0x201C, 0x2020), '"')}
_LIGATURES = re.compile("[\ufb00-\ufb04\ufb06\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3]")
_WIDE = re.compile("[\uff01-\uffef\u3000]")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")

_ESCAPE = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")  # colours of terminals
_SECOND_CONTROLS = {i: bytes([i]).decode("cp1252", "ignore") or chr(i) for i in range(0x80, 0xA0)}


def clean_caption(caption: str) -> str:
    """The caption in lower case, with HTML entities resolved, plain quotes, and single spaces.

    OpenCLIP calls `ftfy.fix_text` first. Of its repairs, this makes those of quotes, ligatures, letters of other
    widths, control characters and composition (NFC). Left as they are: text that was decoded by the wrong encoding, and
    names of entities in capitals that HTML doesn't know, such as `&NBSP;`.
    """
    text = caption if "<" in caption else html.unescape(caption)  # ftfy takes a text with < for HTML
    text = _ESCAPE.sub("", text).translate(_SECOND_CONTROLS)
    text = _LIGATURES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = _WIDE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFC", _CONTROLS.sub("", text.translate(_QUOTES)))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()

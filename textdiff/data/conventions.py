"""How published zero-shot tables read their data: which rows of which data set, and what becomes of the data's own tokenisation.

The rules of each detokenizer are those of the repositories named, faults kept: nested brackets stay half mended, `<unk>` stays in WikiText.
GPT-2's paper called them invertible detokenizers, which most are not; applied twice, those of WikiText and LM1B can go further than once.
What a convention says of blocks and of EOS is for the reader: `textdiff compare` scores every text by itself in rolling windows.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from textdiff.data.source import PARQUET_BRANCH

Rule = tuple[str, str]  # a regular expression, and what stands for it
PREFIX = "zero-shot:"


def _plain(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.escape(old), new.replace("\\", r"\\")) for old, new in pairs)


_INSIDE = (  # "( so )" to "(so)", the same for other brackets and for quotes
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"\{\s*([^}]*?)\s*\}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
_WIKITEXT = (
    *_plain(("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *_plain((" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", ")),
    *_INSIDE,
    *_plain(("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}")),
    *_plain((" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
)
_PTB = (
    *_plain((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
    (r"(?<= )N(?= )", "1"),
    *_plain(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
)
_LM1B = (
    *_plain(("http : / / ", "http://"), ("https : / / ", "https://")),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    (r" \? ", "? "),
    (r" \?$", "?"),
    (r" ! ", "! "),
    (r" !$", "!"),
    *_plain((" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/")),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    *_plain(("$ ", "$"), ("\N{POUND SIGN} ", "\N{POUND SIGN}")),
)
_LAMBADA = (
    *_plain(("\N{LEFT DOUBLE QUOTATION MARK}", '"'), ("\N{RIGHT DOUBLE QUOTATION MARK}", '"')),
    (r"\A\s*", "\n"),
    (r"\s*\Z", ""),
)

DETOKENIZERS: Mapping[str, tuple[Rule, ...]] = {
    "none": (),
    "wikitext": _WIKITEXT,
    "ptb": _PTB,
    "lm1b": _LM1B,
    "lambada": _LAMBADA,
    "scientific": (*_WIKITEXT, *_LM1B),
}


def detokenizer(name: str) -> Callable[[str], str]:
    """The rules of that name, applied in their order; "none" leaves a text as it is. Raises ValueError for other names."""
    if name not in DETOKENIZERS:
        raise ValueError(f"there is no detokenizer {name!r}: expected one of {', '.join(DETOKENIZERS)}")
    rules = [(re.compile(old), new) for old, new in DETOKENIZERS[name]]

    def clean(text: str) -> str:
        for old, new in rules:
            text = old.sub(new, text)
        return text

    return clean


@dataclass(frozen=True)
class Convention:
    """A data set as published zero-shot tables read it."""

    source: str
    """Hub id org/name[:config][@revision]; a local folder of the hub's layout may stand in its place."""
    column: str
    """Of the rows, where the text is."""
    split: str
    """Which part the tables are of; all where the hub has that part only."""
    detokenizer: str
    """A name of `DETOKENIZERS`."""
    published: str
    """How the tables cut it into sequences, and what they count."""
    of: str = "MDLM's repository (Sahoo et al. 2024), which follows SEDD's (Lou et al. 2024)"

    @property
    def note(self) -> str:
        """What a number must say of it."""
        return f"data as in {self.of}, detokenizer {self.detokenizer}; there {self.published}, here every text is scored by itself"


_PACKED = (
    "rows, blank ones too, are joined with EOS after each and cut into blocks of 1,024 that begin and end with a special token, both "
    "counted, what is left of every 1,000 rows dropped"
)
_SCRIPT = PARQUET_BRANCH  # of data sets that were scripts, which `datasets` runs no longer
CONVENTIONS: Mapping[str, Convention] = {
    "ptb": Convention(f"ptb-text-only/ptb_text_only@{_SCRIPT}", "sentence", "validation", "ptb", _PACKED),
    "wikitext": Convention("Salesforce/wikitext:wikitext-2-raw-v1", "text", "validation", "wikitext", _PACKED),
    "wikitext103": Convention("Salesforce/wikitext:wikitext-103-raw-v1", "text", "validation", "wikitext", _PACKED),
    "lm1b": Convention(
        f"billion-word-benchmark/lm1b@{_SCRIPT}",
        "text",
        "test",
        "lm1b",
        "a sentence is a row of 128 padded with tokens that are seen and not counted, or rows are packed, which gives other numbers",
    ),
    "lambada": Convention("EleutherAI/lambada_openai:en", "text", "all", "lambada", _PACKED),
    "ag_news": Convention("fancyzhx/ag_news", "text", "test", "none", _PACKED),
    "pubmed": Convention(f"armanc/scientific_papers:pubmed@{_SCRIPT}", "article", "validation", "scientific", _PACKED),
    "arxiv": Convention(f"armanc/scientific_papers:arxiv@{_SCRIPT}", "article", "validation", "scientific", _PACKED),
}


def convention(name: str) -> Convention:
    """The convention of that name; raises ValueError for other names."""
    if name not in CONVENTIONS:
        raise ValueError(f"there is no zero-shot data set {name!r}: expected one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]

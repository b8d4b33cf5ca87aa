"""Captions as words, as the COCO caption tool splits them: Penn Treebank tokens in lower case, punctuation left out.

The tool runs Stanford's PTBTokenizer (CoreNLP 3.4.1), which needs Java; this gives the same words without it, found by
comparing with it. Where that surprises it is followed too: brackets stay as words (-lrb-), so do several marks ("!!").
"""

import re

# Words that keep their full stop; those of the second list only before a number.
_ABBREVIATIONS = r"""mrs? ms drs? prof sens? reps? gov gens? lt col capt sgt maj adm cmdr hon rev pres supt st ste mt ft
jr sr esq ph\.d inc corp cos? ltd bros vs etc jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thurs? fri sat
sun ala ariz ark calif colo conn ct dak del fla ga ill ind kans? ky la mass md mich minn miss mo mont neb nev okla ore
pa penn tenn tex va vt wash wisc? wyo al ca cf ave blvd rd dept est assn univ [a-z]"""
_BEFORE_NUMBERS = "nos? figs? art pp? prop ex"
_A = "['\u2019]"  # the apostrophe
_END = rf"{_A}(?:[sdm]|re|ve|ll)(?![^\W_])"
_NOT = rf"n{_A}t(?![^\W_])"
_WORD = r"[^\W_]+(?:[-_]+[^\W_]+)*(?:\.[^\W\d_][^\W_]*)*"
_NUMBER = r"(?:\d+(?:[.,:/]\d+)*|\.\d+)"
_PART = r"[^\W_]+(?:-[^\W\d_]+){0,2}"
_SPLIT = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'tis": 2, "'twas": 2}

# One alternative for each kind of token; the first that matches counts.
_TOKEN = re.compile(
    rf"""
      <[/!?]?[a-z][^<>:\n]*>                                            # markup
    | &(?:amp|lt|gt|quot|\#\d+);
    | (?:https?://|ftp://|www\.)[^\s"<>|()]+[^\s"<>|().!?,;:'-]
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | (?:{"|".join(_ABBREVIATIONS.split())})\.(?![\w.])
    | (?:{"|".join(_BEFORE_NUMBERS.split())})\.(?=\s*\d)
    | (?:[a-z]\.){{2,}}(?!\w)                                           # U.S.
    | (?:{"|".join(_SPLIT)})(?!\w)
    | {_END} | {_NOT}
    | {_A}(?:n{_A} | (?:em|til|cause|\d\ds?)\b) | ol{_A} | y{_A}(?=all\b)
    | [odlc]{_A}(?!(?:[sdm]|re|ve|ll)\b)[^\W\d_]+(?:-[^\W_]+)*          # o'clock
    | ma{_A}am\b
    | (?-i:[A-Z]+(?:[&+][A-Z]+)+)                                       # AT&T
    | c\+\+ | [cf]\#
    | [@#][a-z_]\w*
    | {_PART}(?:/{_PART}){{1,2}}(?!{_A}[^\W_]|-)                        # and/or
    | {_NUMBER}(?=[ap]m\b)
    | [+-]?{_NUMBER}(?![\w-])
    | {_WORD}(?={_NOT})
    | {_WORD}
    | [:;=][-']?[()DP](?!\w)
    | [?!]+ | \.(?:\ ?\.)+ | -{{2,}} | _+ | \#+ | \*+ | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
_AS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_AS |= {"\u2019": "'", "\u00a3": "#", " ": "\u00a0"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}
# Not counted as words. Brackets are not here: in lower case they are not the ones that the tool leaves out.
_PUNCTUATION = re.compile(r"['\"`\u2018\u2019\u201c\u201d.?!,:;]|\.[. ]*\.|--?|[\u2013\u2014\u2026]")


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case."""
    found = []
    for token in _TOKEN.findall(caption):
        token = _ENTITIES.get(token, token).lower()
        at = _SPLIT.get(token, len(token))
        found += [part for part in (token[:at], token[at:]) if part]
    return ["".join(_AS.get(c, c) for c in w) for w in found if not _PUNCTUATION.fullmatch(w)]

r"""Captions as words, as the COCO caption tool splits them: Penn Treebank tokens in lower case, punctuation left out.

The tool runs Stanford's PTBTokenizer (CoreNLP 3.4.1), which needs Java; this gives the same words without it, found by
comparing with it on many awkward captions. Where that surprises it is followed too: brackets stay as words (-lrb-), so
do several marks ("!!"), \u20ac is "$" and \u00a3 "#", a half is "1/2", and what the tool does not know, such as emoji,
is left out. Two things differ: letters that are newer than Unicode 6 are words here, and the tool, which reads all
captions as one text, may take the full stop from a last single letter because of the next caption's first word.
"""

import re

# Words that keep their full stop; those of the second list only before a number.
_ABBREVIATIONS = r"""mrs? ms drs? prof sens? reps? gov gens? lt col capt sgt maj adm cmdr hon rev pres supt st ste mt ft
jr sr esq ph\.d inc corp cos? ltd bros vs etc jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thurs? fri sat
sun ala ariz ark calif colo conn ct dak del fla ga ill ind kans? ky la mass md mich minn miss mo mont neb nev okla ore
pa penn tenn tex va vt wash wisc? wyo al ca cf ave blvd rd dept est assn univ [a-z]"""
_BEFORE_NUMBERS = "nos? figs? art pp? prop ex"
# What begins a sentence, so that a letter before it loses its full stop.
_FIRST = """A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr.
Ms. Now Once One Other Our She Since So Some Such That The Their Then There These They This We When While What Yet
You"""
_SPLIT = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'tis": 2, "'twas": 2}

# Characters that are tokens of their own, and those that are no letters for Python but are parts of words.
_SIGNS = (
    "\xa1\xa5-\xa9\xac\xae-\xb4\xb6-\xb9\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603"
    "\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8\u0964\u0965\u0e3f\u0e4f\u1fbd"
    "\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100"
    "\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144"
    "\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0378\u0379\u0384\u0385\u03f6\u0483-\u0487\u055a-"
    "\u055f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed"
    "\u06fd\u06fe\u070f\u0711\u0730-\u074c\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962"
    "\u0963\u0981-\u0983\u09bc\u09be-\u09c4\u09c7\u09c8\u09cb-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f"
    "\u0a81-\u0a83\u0abc\u0abe-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-"
    "\u0d44\u0d46-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)
_QUOTES = "\u0091-\u0094\u2018\u2019\u201b-\u201d\u2039\u203a\xab\xbb"
_DASHES = "\u0096\u0097\u2012-\u2015"
_MONEY = "\x80\xa2-\xa5\u060b\u0e3f\u20a0\u20a4\u20ac\uffe0\uffe1\uffe5\uffe6"
_KNOWN = re.compile(
    rf"[\t-\r -~{_SIGNS}{_MARKS}{_QUOTES}{_DASHES}{_MONEY}\x85\xad\xbc-\xbe\u058a\u066b\u066c\u2010\u2011\u2026\u2153"
    r"\u2154]"
)

_A = "(?:['\u2019\x92]|&apos;)"  # the apostrophe
_A2 = "(?:['\u2019\x92`\x91\u2018\u201b]|&apos;)"
_FRACTIONS = "\xbc-\xbe\u2153\u2154"
_L = rf"(?:[^\W\d_{_SIGNS}{_FRACTIONS}]|[{_MARKS}\xad]|&[aeiou](?:acute|grave|uml);)"  # a letter
_LD = rf"(?:{_L}|\d)"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_END = rf"{_A}(?:[sdm]|re|ve|ll)"
_NOT = rf"n{_A2}t"
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_NUM = r"(?:\d*(?:[.:,\xad\u066b\u066c]\d+)+|\d+)"
_PART = r"[a-z0-9]+(?:-[a-z]+){0,2}"
_THING = rf"(?:[dol]{_A2}{_LD})?{_LD}+(?:{_HYPHEN}(?:[dol]{_A2}{_LD})?{_LD}+)*"
_URL_END = r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?"

_NAME = "[a-z][a-z0-9_:.-]*"
_VALUE = rf"""(?:'[^'\r\n]*'|"[^"\r\n]*"|{_NAME})"""
_MARKUP = rf"<(?:[!?][a-z-][^>\r\n]*|/?{_NAME}(?:[ ]+{_NAME}(?:[ ]*=[ ]*{_VALUE})?)*[ ]*/?[ ]*)>"
_STARTS = "|".join(re.escape(w) + "|" + re.escape(w.upper()) for w in _FIRST.split())

# The rules of the tokenizer. At each place the longest match counts, with its group `more`, which is looked at and left
# for the next token; of equally long ones the first.
_RULES = [
    re.compile(rule, re.IGNORECASE)
    for rule in (
        rf"(?:{'|'.join(_SPLIT)})",
        _MARKUP,
        r"&(?:amp|lt|gt|quot|apos|mdash|ndash|md|nbsp|#\d+);",
        rf"{_WORD}(?=(?P<more>{_END}))",
        rf"[a-z]*[a-mo-z]\xad*(?=(?P<more>{_NOT}))",
        _WORD,
        rf"{_A}n{_A}?|[ldj]{_A}|(?:ol|dunkin|somethin){_A}|{_A}(?:em|till?|cause|[2-9]0s)|cont{_A}d\.?|s{_A}mores|c{_A2}mon",
        rf"(?-i:[A-HJ-XZn]){_A2}{_L}{{2,}}|{_L}+[aeiouy]{_A2}(?-i:[aeiouA-Z]){_L}*|ma{_A}am|o{_A}clock|e{_A}er",
        rf"{_A}\d\d(?=(?P<more>\s|$))",
        r"-[lr][rcs]b-",
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
        rf"y{_A}(?=(?P<more>{_L}))",
        r"(?:https?|ftp)://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
        rf"(?:www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-z]{{2,4}}|(?:[^\s\"`'<>|.!?(){{}},_$-]+\.)+(?:com|net|org|edu)){_URL_END}",
        r"[a-z0-9][^\s\"<>|()\xa0]*@(?:[^\s\"<>|().\xa0]+\.)*[^\s\"<>|().\xa0]+",
        r"[@\uff20][a-z_][a-z_0-9]*",
        rf"[#\uff03]{_L}+",
        rf"(?:{_END}|{_NOT})(?=(?P<more>[^a-z]|$))",
        r"'(?=(?P<more>[a-z]\S))",
        r"[\u2019\x92](?:[sdm]|re|ve|ll)",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        rf"[-+]?{_NUM}",
        r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}",
        r"[\xbc-\xbe\u2153-\u215e]",
        r"(?-i:[A-Z]*)[$]|\#",
        rf"[{_MONEY}]",
        rf"[a-z](?=(?P<more>\.\s+(?:(?-i:{_STARTS})|{_MARKUP})(?:\s|$)))",
        rf"(?:{'|'.join(_ABBREVIATIONS.split())})\.",
        rf"(?:{_BEFORE_NUMBERS.replace(' ', '|')})\.(?=(?P<more>\s?\d))",
        r"[a-z](?:\.[a-z])+\.",
        rf"(?:{_WORD}|{_THING}|{_NUM})\.(?=(?P<more>[,;:\u3001]))",
        r"(?-i:[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+)",  # AT&T
        rf"{_PART}(?:\\?/{_PART}){{1,2}}",  # and/or
        _THING,
        rf"{_THING}(?=(?P<more>{_END}))",
        r"[a-z]\+\+|[cf]\#",
        r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?=(?P<more>[^a-z0-9]|$))",  # :-)
        r"[\^x=~<>]\.[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",
        r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85\u2026]",
        rf"[?!]+|-+|_+|\#+|\*+|@+|``|''|[{_QUOTES}]{{2}}",
        r"\S",
    )
]
_SHORT = re.compile(r"(n?)(?:[\u2019\x92]|&apos;)(?=(?:[sdmt]|re|ve|ll)\Z)")
_PLAIN = re.compile(r"[A-Za-z]+(?=\s)")
_AS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_AS |= {"\xad": "", " ": "\xa0"}
# Whole tokens, and what stands for them.
_ALONE = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "\xa3": "#", "\xa2": "cents"}
_ALONE |= dict.fromkeys("\x80\xa4\u20a0\u20ac", "$")
_ALONE |= {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
# Not counted as words. Brackets are not here: in lower case they are not the ones that the tool leaves out.
_PUNCTUATION = re.compile(
    rf"['\"`.?!,:;]|[{_QUOTES}]{{1,2}}|''|``|\.[. ]+|-{{1,4}}|[{_DASHES}\u2026\x85]|&[mn]dash;|&nbsp;|\x00"
)


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case."""
    caption, tokens, at = "".join(map(_known, caption)), [], 0
    while at < len(caption):
        if caption[at].isspace():
            at += 1
            continue
        match = _PLAIN.match(caption, at)
        if not match or match[0].lower() in _SPLIT:
            match = _longest(caption, at)
        at = match.end()
        tokens += _parts(match[0])
    kept = ("".join(_AS.get(c, c) for c in _plain(t)) for t in tokens if not _PUNCTUATION.fullmatch(t))
    return [word for word in kept if word]


def _known(c):
    """A character, or \\x00 in place of one that the tool does not know: it ends a token and is left out."""
    known = _KNOWN.match(c) or c.isspace() or c <= "\uffff" and (c.isalpha() or c.isdecimal())
    return c if known else "\x00"


def _longest(caption, at):
    """The match of the rule that reaches farthest from a place, what it looks ahead at included."""

    def reach(match):
        return max(match.end(), match.end("more") if "more" in match.re.groupindex else 0)

    return max((m for rule in _RULES if (m := rule.match(caption, at))), key=reach)


def _plain(token):
    """A token with a plain apostrophe where it is 's, n't and so on; within a word it stays as it is."""
    short = _SHORT.match(token)
    return f"{short[1]}'{token[short.end() :]}" if short else token


def _parts(token):
    """A token in lower case, or the two that it is split into."""
    token = _ALONE.get(token, token).lower()
    cut = _SPLIT.get(token.replace("\u2019", "'").replace("\x92", "'"), len(token))
    return [part for part in (token[:cut], token[cut:]) if part]

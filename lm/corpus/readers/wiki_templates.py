"""What wikitext's templates leave in running prose. Those that are not listed here leave nothing."""

import re
from collections.abc import Callable

Parameters = dict[str, str]

_LANGUAGE_NAMES = dict(
    re.findall(
        r"(\w+)=(\w+)",
        "af=Afrikaans ar=Arabic hy=Armenian be=Belarusian bn=Bengali bg=Bulgarian ca=Catalan zh=Chinese hr=Croatian "
        "cs=Czech da=Danish nl=Dutch et=Estonian fi=Finnish fr=French ka=Georgian de=German el=Greek grc=Greek he=Hebrew "
        "hi=Hindi hu=Hungarian is=Icelandic id=Indonesian ga=Irish it=Italian ja=Japanese ko=Korean la=Latin lv=Latvian "
        "lt=Lithuanian mk=Macedonian ms=Malay no=Norwegian fa=Persian pl=Polish pt=Portuguese ro=Romanian ru=Russian "
        "sa=Sanskrit sr=Serbian sk=Slovak sl=Slovene es=Spanish sv=Swedish ta=Tamil te=Telugu th=Thai tr=Turkish "
        "uk=Ukrainian ur=Urdu vi=Vietnamese cy=Welsh yi=Yiddish eu=Basque gl=Galician sq=Albanian",
    )
)
_UNITS = {
    "C": "°C", "F": "°F", "K": "K", "km2": "km²", "m2": "m²", "cm2": "cm²", "sqmi": "sq mi", "sqft": "sq ft", "sqkm": "km²",
    "m3": "m³", "km3": "km³", "cuft": "cu ft", "cumi": "cu mi", "ftin": "ft", "acre": "acres", "acres": "acres", "mph": "mph",
    "kmh": "km/h", "km/h": "km/h", "m/s": "m/s", "mile": "miles", "miles": "miles", "foot": "feet",
    "feet": "feet", "nmi": "nautical miles", "e6sqmi": "million sq mi", "e6km2": "million km²", "/sqmi": "per sq mi", "/km2": "per km²", "PD/sqmi": "per sq mi",
    "PD/km2": "per km²", "in": "inches", "hp": "hp", "°C": "°C", "°F": "°F", "g/cm3": "g/cm³", "kg/m3": "kg/m³",
}  # fmt: skip
_JOINERS = {
    "-": "–", "–": "–", "to": " to ", "and": " and ", "or": " or ", "by": " by ", "x": " × ", "*": " × ", "×": " × ", "to(-)": "–",
    "+/-": " ± ", "±": " ± ",
}  # fmt: skip
_NUMBER = re.compile(r"[-−+±]?[\d,.]*\d(?:[+ ]?\d+[/⁄]\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip


def positional(parameters: Parameters) -> list[str]:
    """Return the parameters 1, 2, … that are there, in a row."""
    found = []
    while (value := parameters.get(str(len(found) + 1))) is not None:
        found.append(value)
    return found


def _argument(number: int, before: str = "", after: str = "") -> Callable[[Parameters], str]:
    def render(parameters: Parameters) -> str:
        value = parameters.get(str(number), "")
        return before + value + after if value else ""

    return render


def _constant(text: str) -> Callable[[Parameters], str]:
    return lambda parameters: text


def _last(parameters: Parameters) -> str:
    return (positional(parameters) or [parameters.get("text", "")])[-1]


def _longest(parameters: Parameters) -> str:
    return max(positional(parameters), key=len, default="")


def _joined(separator: str) -> Callable[[Parameters], str]:
    return lambda parameters: separator.join(filter(None, positional(parameters)))


def _convert(parameters: Parameters) -> str:
    """`5|km|mi` → `5 km`; `5|to|10|C` → `5 to 10 °C`; the conversion itself is left out."""
    values = positional(parameters)
    text = ""
    for index, value in enumerate(values):
        value = value.strip()
        if index % 2 == 0 and _NUMBER.fullmatch(value):
            value = value.replace("+", " ") if "/" in value else value
            text += f"{int(value):,}" if value.isdecimal() and len(value) > 3 else value
        elif index % 2 == 1 and index + 1 < len(values) and value in _JOINERS:
            text += _JOINERS[value]
        else:
            unit = _unit(value)
            following = values[index + 1].strip() if index + 1 < len(values) else ""
            if value in ("ft", "lb", "st") and re.fullmatch(r"[\d.]+", following) and index + 2 < len(values):
                return f"{text} {unit} {following} {_unit(values[index + 2].strip())}"
            return f"{text} {unit}" if text else ""
    return text


def _unit(code: str) -> str:
    power = {"e3": "thousand ", "e6": "million ", "e9": "billion "}.get(code[:2], "")
    code = code[2:] if power else code
    return power + _UNITS.get(code, code)


def _language(parameters: Parameters) -> str:
    """`langx|de|Wort` → `German: Wort`."""
    return in_language(parameters.get("1", ""), parameters.get("2", ""))


def in_language(code: str, text: str) -> str:
    """Return a foreign word as the templates `lang-XX` show it."""
    name = _LANGUAGE_NAMES.get(code.strip().partition("-")[0].lower())
    return f"{name}: {text}" if name and text else text


def _nihongo(parameters: Parameters) -> str:
    english, japanese, romaji = (parameters.get(key, "").strip() for key in "123")
    inside = ", ".join(filter(None, (japanese, romaji)))
    return f"{english} ({inside})" if english and inside else english or inside


def _chinese(parameters: Parameters) -> str:
    labels = {"c": "Chinese", "s": "simplified Chinese", "t": "traditional Chinese", "p": "pinyin", "w": "Wade–Giles",
              "j": "Jyutping", "hangul": "Korean", "hanja": "hanja", "rr": "RR", "mr": "MR"}  # fmt: skip
    found = [f"{label}: {parameters[key].strip()}" for key, label in labels.items() if parameters.get(key, "").strip()]
    return "; ".join(found)


def _quote(parameters: Parameters) -> str:
    text = parameters.get("1") or parameters.get("text") or parameters.get("quote") or ""
    author = parameters.get("2") or parameters.get("author") or parameters.get("sign") or ""
    who = f"\n\n— {author.strip()}" if author.strip() else ""
    return f"\n\n{text.strip()}{who}\n\n" if text.strip() else ""


def _date(parameters: Parameters) -> str:
    parts = [value.strip() for value in positional(parameters)[:3]]
    if not all(part.isdecimal() for part in parts):
        return " ".join(parts)
    if len(parts) < 2 or not 1 <= int(parts[1]) <= 12:
        return "".join(parts[:1])
    month = _MONTHS[int(parts[1]) - 1]
    return f"{month} {int(parts[2])}, {parts[0]}" if len(parts) == 3 else f"{month} {parts[0]}"


def _fraction(parameters: Parameters) -> str:
    parts = positional(parameters)
    if len(parts) == 3:
        return f"{parts[0]} {parts[1]}/{parts[2]}"
    return "/".join(parts) if len(parts) == 2 else f"1/{parts[0]}" if parts else ""


def _value(parameters: Parameters) -> str:
    numbers = positional(parameters)
    text = numbers[0] if numbers else ""
    text += f" ± {numbers[1]}" if len(numbers) > 1 else ""
    text += f"×10^{parameters['e'].strip()}" if parameters.get("e") else ""
    unit = parameters.get("u") or parameters.get("ul") or parameters.get("up")
    return f"{text} {_unit(unit.strip())}" if unit and text else text


def _as_of(parameters: Parameters) -> str:
    start = parameters.get("alt") or ("as of " if parameters.get("lc") else "As of ")
    return start if parameters.get("alt") else start + _date(parameters)


def _interwiki(parameters: Parameters) -> str:
    return parameters.get("lt") or parameters.get("display") or parameters.get("1", "")


def _listed(parameters: Parameters) -> str:
    return "\n" + "\n".join("* " + value.strip() for value in positional(parameters)) + "\n"


def _ship(parameters: Parameters) -> str:
    return " ".join(filter(None, (parameters.get("1", ""), parameters.get("2", ""))))


_TABLE: tuple[tuple[str, Callable[[Parameters], str]], ...] = (
    ("convert, cvt", _convert),
    ("lang, script, rtl-lang, gloss-lang, transl, transliteration, sort, color, colour, font color, font, background color, fontcolor", _last),
    ("langx", _language),
    ("nihongo, nihongo krt", _nihongo),
    ("nihongo2, nihongo3, nihongo foot", _argument(1)),
    ("zh, zh-full, korean, ko-hhrm", _chinese),
    ("quote, blockquote, cquote, quotation, quotes, poemquote, poem quote, centered pull quote, verse translation, bq", _quote),
    (
        "nowrap, nobr, small, smaller, big, bigger, larger, large, em, strong, bold, italic, i, b, abbr, tooltip, iast, pie, "
        "unicode, polytonic, hebrew, he-icon, nastaliq, script/arabic, not a typo, typo, proper name, visible anchor, "
        "vanchor, center, centre, formatnum, num, nts, mvar, math, var, kbd, code, samp, mono, tt, title case, smallcaps, sc, "
        "allcaps, caps, underline, u, linktext, flag, flagcountry, flagu, plainlist, flatlist, hlist item, noitalic, noitalics, "
        "uc, lc, ucfirst, lcfirst, w, wikt-lang, grc-tr, usurped, nbsp, delink, pronunciation, first word, section link, "
        "asiantitle, normal, big math, bigmath, lang-ar-at, tlit, wiktionary-inline, strikethrough, resize, music note, highlight, "
        "bare link, no selflink, mp, script/hebrew, script/greek, spell-nu, native name, native phrase, naut, char, keypress",
        _argument(1),
    ),
    ("sic", _joined(" ")),
    ("interlanguage link, interlanguage link multi, ill, illm, link-interwiki", _interwiki),
    ("ubl, unbulleted list, bulleted list, blist", _listed),
    ("hlist", _joined(", ")),
    ("gaps, bibleverse, bibleverse-nb, bibleref, bibleref2, sortname", _joined(" ")),
    ("chem, chem2, chemf", _joined("")),
    ("circa, c., ca.", _argument(1, "c. ")),
    ("floruit, fl., fl", _argument(1, "fl. ")),
    ("reign, r.", _argument(1, "r. ")),
    ("as of", _as_of),
    ("start date, end date, dts, date, birth date, death date, birth date and age, death date and age, start date and age, film date", _date),
    ("frac, sfrac, fraction", _fraction),
    ("val", _value),
    ("us$, usd", _argument(1, "US$")),
    ("gbp, £", _argument(1, "£")),
    ("eur, euro, €", _argument(1, "€")),
    ("a$, aud", _argument(1, "A$")),
    ("inr, ₹", _argument(1, "₹")),
    ("e, x10^", _argument(1, "×10^")),
    ("sup", _argument(1, "^")),
    ("sub", _argument(1)),
    ("angbr, angle bracket", _argument(1, "⟨", "⟩")),
    ("ship", _ship),
    ("hms", _argument(1, "HMS ")),
    ("uss", _argument(1, "USS ")),
    ("ss", _argument(1, "SS ")),
    ("ndash, en dash, nd", _constant("–")),
    ("spaced ndash, snd, spnd, spaced en dash, spndash", _constant(" – ")),
    ("mdash, em dash, emdash, mdashb, --", _constant("—")),
    ("carbon", _constant("C")),
    ("hydrogen", _constant("H")),
    ("oxygen", _constant("O")),
    ("nitrogen", _constant("N")),
    ("simplenuclide, simplenuclide2, nuclide, nuclide2", _joined("-")),
    ("columns-list, columns", _longest),  # the number of columns came first once
    ("lsj", _last),
    ("'", _constant("'")),
    ("'s", _constant("'s")),
    ("-, shy, zwj, zwnj, zwsp, wbr", _constant("")),
    ("·, dot, middot, •, bullet", _constant(" · ")),
    ("space, sp, spaces, thinsp, thin space, hsp", _constant(" ")),
    ("!, pipe", _constant("|")),
    ("=", _constant("=")),
    ("okina, hamza, ayin", _constant("ʻ")),
    ("sharp, music sharp", _constant("♯")),
    ("flat, music flat", _constant("♭")),
    ("pi", _constant("π")),
    ("ad", _argument(1, "AD ")),
    ("bce, bc", _argument(1, "", " BC")),
    ("ce", _argument(1, "", " AD")),
)  # fmt: skip
TEMPLATES: dict[str, Callable[[Parameters], str]] = {
    name.strip(): render for names, render in _TABLE for name in names.split(",") if name.strip()
}
_FUNCTIONS = ("formatnum", "lc", "uc", "lcfirst", "ucfirst")


def render_template(arguments: list[str], title: str = "") -> str | None:
    """Return what a template shows in a sentence, None for one that is dropped.

    Args:
      arguments: its name, then its parameters as they stand (`1=a` and `a` are the same), rendered already.
      title: the page's.
    """
    name = arguments[0].strip().replace("_", " ")
    if name in ("PAGENAME", "FULLPAGENAME", "BASEPAGENAME", "SUBPAGENAME"):
        return title
    name = " ".join(name.lower().removeprefix("template:").split())
    function, colon, value = name.partition(":")
    if colon and function in _FUNCTIONS:
        return arguments[0].partition(":")[2].strip()
    render = TEMPLATES.get(name)
    if render is None and not (language := re.fullmatch(r"lang-([a-z]{2,3})(?:-\w+)*", name)):
        return None
    parameters: Parameters = {}
    position = 0
    for argument in arguments[1:]:
        key, equals, value = argument.partition("=")
        if equals and re.fullmatch(r"\s*[\w .-]{1,30}\s*", key):
            parameters[key.strip().lower()] = value.strip()
        else:
            position += 1
            parameters[str(position)] = argument
    if render is None:
        return in_language(language[1], parameters.get("1", ""))
    return render(parameters)

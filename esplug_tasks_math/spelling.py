"""Tables of equivalent LaTeX spellings, for :mod:`esplug_tasks_math.latex`."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Commands and characters that affect only the appearance of an answer.
DROPPED = _words(
    r"""$ ~ \, \! \; \: \> \( \) \[ \] \left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl
    \biggr \Biggl \Biggr \quad \qquad \displaystyle \textstyle \scriptstyle \limits \nolimits \boxed \fbox
    \phantom \thinspace \rm \bf \it \hfill \allowbreak \enspace \space \mathstrut \strut"""
) | {"\\ ", "\\\n"}
#: Commands whose argument is text or mathematics in another font.
FONTS = _words(
    r"""\text \mbox \hbox \textbf \textit \textrm \textsf \texttt \textnormal \textup \mathrm \mathbf \mathit
    \mathsf \mathtt \mathnormal \boldsymbol \bm \operatorname \operatorname* \emph \underline"""
)
#: Alternative spellings: command or character to its normalized tokens.
ALIASES: dict[str, tuple[str, ...]] = {
    alias: tuple(tokens.split())
    for alias, tokens in {
        r"\dfrac": r"\frac",
        r"\tfrac": r"\frac",
        r"\cfrac": r"\frac",
        r"\dbinom": r"\binom",
        r"\tbinom": r"\binom",
        r"\le": r"\leq",
        r"\leqslant": r"\leq",
        r"\leqq": r"\leq",
        r"\ge": r"\geq",
        r"\geqslant": r"\geq",
        r"\geqq": r"\geq",
        r"\lt": "<",
        r"\gt": ">",
        r"\ne": r"\neq",
        r"\lbrace": r"\{",
        r"\rbrace": r"\}",
        r"\lbrack": "[",
        r"\rbrack": "]",
        r"\lvert": "|",
        r"\rvert": "|",
        r"\vert": "|",
        r"\mid": "|",
        r"\times": r"\cdot",
        r"\ast": r"\cdot",
        r"\div": "/",
        r"\%": "%",
        r"\degree": "°",
        r"\degrees": "°",
        r"\prime": "'",
        r"\colon": ":",
        r"\dots": r"\ldots",
        r"\cdots": r"\ldots",
        r"\varnothing": r"\emptyset",
        r"\lor": r"\text{or}",
        r"\vee": r"\text{or}",
        r"\infin": r"\infty",
        r"\approxeq": r"\approx",
        r"\simeq": r"\approx",
        r"\varepsilon": r"\epsilon",
        r"\varphi": r"\phi",
        r"\vartheta": r"\theta",
        "*": r"\cdot",
        "\N{MULTIPLICATION SIGN}": r"\cdot",
        "·": r"\cdot",
        "⋅": r"\cdot",
        "÷": "/",
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "≤": r"\leq",
        "≥": r"\geq",
        "≠": r"\neq",
        "≈": r"\approx",
        "±": r"\pm",
        "∞": r"\infty",
        "\N{UNION}": r"\cup",
        "∩": r"\cap",
        "∈": r"\in",
        "∅": r"\emptyset",
        "π": r"\pi",
        "θ": r"\theta",
        "\N{GREEK SMALL LETTER ALPHA}": r"\alpha",
        "β": r"\beta",
        "λ": r"\lambda",
        "μ": r"\mu",
        "\N{GREEK SMALL LETTER SIGMA}": r"\sigma",
        "ω": r"\omega",
        "φ": r"\phi",
        "√": r"\sqrt",
        "²": "^ 2",
        "³": "^ 3",
        "½": r"\frac { 1 } { 2 }",
        "¼": r"\frac { 1 } { 4 }",
        "¾": r"\frac { 3 } { 4 }",
        "\N{PRIME}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{FULLWIDTH COMMA}": ",",
        "\N{FULLWIDTH LEFT PARENTHESIS}": "(",
        "\N{FULLWIDTH RIGHT PARENTHESIS}": ")",
    }.items()
}

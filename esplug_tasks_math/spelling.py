"""Tables of equivalent LaTeX spellings, for :mod:`esplug_tasks_math.latex`."""


def listed(text: str) -> tuple[str, ...]:
    """Split a table of words."""
    return tuple(text.split())


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Commands and characters that affect only the appearance of an answer.
DROPPED = _words(
    r"""$ ~ \, \! \; \: \> \( \) \[ \] \left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl
    \biggr \Biggl \Biggr \quad \qquad \displaystyle \textstyle \scriptstyle \limits \nolimits \boxed \fbox
    \thinspace \hline \large \Large \small \normalsize \tiny \rmfamily \bfseries \rm \bf \it \hfill \allowbreak
    \enspace \space \mathstrut \strut"""
) | {"\\ ", "\\\n"}
#: Commands whose argument is text or mathematics in another font.
FONTS = _words(
    r"""\text \mbox \hbox \textbf \textit \textrm \textsf \texttt \textnormal \textup \mathrm \mathbf \mathit
    \mathsf \mathtt \mathnormal \boldsymbol \bm \pmb \operatorname \operatorname* \emph \underline"""
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
        r"\land": r"\text{and}",
        r"\wedge": r"\text{and}",
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
        "÷": r"\div",
        "\N{DIVISION SLASH}": "/",
        "\N{FRACTION SLASH}": "/",
        "\N{HYPHEN}": "-",
        "\N{NON-BREAKING HYPHEN}": "-",
        "\N{FIGURE DASH}": "-",
        "\N{HEAVY MINUS SIGN}": "-",
        "∙": r"\cdot",
        "\N{ASTERISK OPERATOR}": r"\cdot",
        "⌊": r"\lfloor",
        "⌋": r"\rfloor",
        "⌈": r"\lceil",
        "⌉": r"\rceil",
        "⟨": r"\langle",
        "⟩": r"\rangle",
        "\u2329": r"\langle",
        "\u232a": r"\rangle",
        "〈": r"\langle",
        "〉": r"\rangle",
        "\N{DOUBLE-STRUCK CAPITAL R}": r"\mathbb R",
        "\N{DOUBLE-STRUCK CAPITAL Z}": r"\mathbb Z",
        "\N{DOUBLE-STRUCK CAPITAL N}": r"\mathbb N",
        "\N{DOUBLE-STRUCK CAPITAL Q}": r"\mathbb Q",
        "\N{SET MINUS}": r"\setminus",
        "º": "°",
        "\N{RATIO}": ":",
        "∧": r"\text{and}",
        "\N{LOGICAL OR}": r"\text{or}",
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
        "\N{PRIME}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    }.items()
}
#: Commands between their two arguments, as in ``{1 \\over 2}``, and those that take the arguments after them.
INFIX = {r"\over": r"\frac", r"\choose": r"\binom"}

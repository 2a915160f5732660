r"""Worked examples for small and base models, which show how a solution ends in ``\boxed{}``."""

#: Problem and solution for each kind of the small set, with numbers outside its ranges.
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("What is 54 + 23?", r"54 + 23 = 77. The answer is \boxed{77}."),
    ("Solve for x: $4x + 31 = 51$.", r"4x = 51 - 31 = 20, so x = 20 / 4 = 5. The answer is \boxed{5}."),
    (
        "Ines has 130 stamps. She fills 2 albums with 40 stamps each. How many stamps does Ines have left?",
        r"The albums take 2 * 40 = 80 stamps, and 130 - 80 = 50. The answer is \boxed{50}.",
    ),
    (
        r"Compute $\frac{1}{14} + \frac{3}{7}$ and simplify.",
        r"\frac{3}{7} = \frac{6}{14}, so the sum is \frac{7}{14} = \frac{1}{2}. The answer is \boxed{\frac{1}{2}}.",
    ),
)

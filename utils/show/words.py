"""What figures and pages say of a pair, and of its maps, in words."""

from ..explanations.explanation import Explanation
from ..trust.faithfulness import CHANCE, FAITHFUL, HARDLY, WEAK, Verdict

SOLID = 0.25  # share of the strongest evidence from which a map has its full colour; weaker maps have a remark
CLOSE = 0.01  # of a similarity to the limit: a title needs a third digit
UNJUDGED = "Maps not judged."
NOTHING = "There is no such pair."
KINDS = ("factual", "counterfactual")


def titles_of_maps(pair: Explanation) -> dict[str, str]:
    """Say what each kind of map of a pair shows."""
    side = pair.closer_to()
    if pair.decision() != "undecided":
        return {
            "factual": f'What supports "{side}" (factual)',
            "counterfactual": f'What contradicts "{side}" (counterfactual)',
        }
    if not pair.source.decides:
        return {"factual": "What makes them similar", "counterfactual": "What makes them different"}
    other = {"same": "different", "different": "same"}[side]
    return {"factual": f'What supports "{side}"', "counterfactual": f'What supports "{other}"'}


def title_of(pair: Explanation) -> str:
    """Return the decision, the similarity, and whether it is correct, in one line of a title."""
    decision = pair.decision().capitalize() if pair.source.decides else "No decision"
    score = pair.similarity[0].item()
    digits = 2 if abs(score - pair.limit) >= CLOSE else 3
    symbol = {True: " \u2713", False: " \u2717", None: ""}[pair.correct()]
    return f"{decision} (similarity {score:.{digits}f}){symbol} {pair.classes_in_words()}".rstrip()


def sentence_of(pair: Explanation) -> str:
    """Return score and decision in words, without the warning, which stands on top of each figure."""
    return pair.sentence().removeprefix(pair.source.warning).lstrip()


def symbol_of(word: str) -> str:
    """Return the symbol of a word of a verdict: \u2713 faithful, \u2717 chance, ~ for all between."""
    return {FAITHFUL: "\u2713", CHANCE: "\u2717"}.get(word, "~")


def remark(pair: Explanation, image: int, heatmap) -> str:
    """Say of a map that is too weak to be seen how strong it is, or why it is blank; "" for a map in full colour.

    Args:
        pair: Of one pair.
        image: 0 or 1.
        heatmap: The map of that image as it is drawn, (h, w) in [0, 1].
    """
    strongest = float(heatmap.max())
    if strongest >= SOLID:
        return ""
    if strongest > 0:
        return f"at most {strongest:.1%} of the strongest evidence"
    return pair.cause_of_blank(0, image)


def texts_of(pair: Explanation, verdict: Verdict | None, index: int) -> tuple[str, str]:
    """Return the title and the caption of a pair whose maps are shown.

    Args:
        pair: Of one pair.
        verdict: On it and others, or None.
        index: Of the pair among them.
    """
    lines = [sentence_of(pair), f"Method: {pair.description}."]
    if verdict is not None:
        lines.append(verdict.sentence(index))
    return f"{title_of(pair)}\n{maps_in_short(verdict, index)}", "\n".join(lines)


def caption(pair: Explanation) -> str:
    """Describe a pair: the decision, whether it is correct, similarity, probability, and the actual classes."""
    return f"{title_of(pair)}. {details_of(pair)}".strip()


def details_of(pair: Explanation) -> str:
    """Describe what does not fit the title of a pair: its probability, where it is known."""
    if pair.probability is None:
        return ""
    return f"Probability of one class: {pair.probability[0, 0]:.2f}."


def is_believed(verdict: Verdict | None, index=0) -> bool:
    """Return whether the maps of a pair are drawn in colour: those without a verdict, and faithful and weak ones."""
    return verdict is None or verdict.word(index) in (FAITHFUL, WEAK)


def maps_in_short(verdict: Verdict | None, index=0) -> str:
    """Say how faithful the maps of a pair are, in one line of a title."""
    if verdict is None:
        return UNJUDGED
    word = verdict.word(index)
    text = f"{symbol_of(word)} {word}"
    if word == HARDLY:
        return text
    if not is_believed(verdict, index):
        return f"Maps (grey): {text}"
    return f"Maps: {text} ({verdict.share()[index]:.2f} of what is possible)"

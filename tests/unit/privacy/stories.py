"""What a lying server tells honest clients: the known attacks on one exchange, and how tests change them at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st

from tests.unit.privacy.conspiracy import Conspiracy, Late, Story

Deviation = Callable[[Conspiracy], Story]


def truth(league: Conspiracy) -> Story:
    return Story()


def alone(company: int) -> Deviation:
    """The first client, and so many other honest ones, hear of nobody else but the server's clients."""

    def story(league: Conspiracy) -> Story:
        few = league.honest[: 1 + company]
        return Story(heard=dict.fromkeys(few, frozenset(few) | league.colluders))

    return story


def split(league: Conspiracy, share: float) -> dict[str, frozenset[str]]:
    """So large a share of the honest clients hears that all survived, the others that the first one did not."""
    everybody, first = frozenset(league.plan.cohort), round(share * len(league.honest))
    without = everybody - {league.honest[0]}
    return {name: everybody if place < first else without for place, name in enumerate(league.honest)}


def two_stories(share: float) -> Deviation:
    return lambda league: Story(survivors=split(league, share))


def asked_again(league: Conspiracy) -> Story:
    """After everything was opened all are asked once more, as if the first one had not survived."""
    return Story(again=dict.fromkeys(league.honest, frozenset(league.plan.cohort) - {league.honest[0]}))


def never_shared(league: Conspiracy) -> Story:
    """Nothing of the others reaches the first client, and all are said to have survived."""
    victim = league.honest[0]
    others = frozenset(league.honest[1:])
    return Story(absent={victim: others}, survivors={victim: frozenset(league.plan.cohort)})


def hidden(count: int) -> Deviation:
    """So many clients are nobody's partners, and all are said to have survived."""

    def story(league: Conspiracy) -> Story:
        few = frozenset(league.honest[:count])
        apart = {name: few if name not in few else frozenset(league.honest) - few for name in league.honest}
        return Story(absent=apart, survivors=dict.fromkeys(league.honest, frozenset(league.plan.cohort)))

    return story


def said_to_be_lost(lost: int) -> Deviation:
    """So many honest clients are said to have dropped out, and their keys are asked for."""

    def story(league: Conspiracy) -> Story:
        left = frozenset(league.plan.cohort) - frozenset(league.honest[len(league.honest) - lost :])
        return Story(survivors=dict.fromkeys(league.honest, left))

    return story


def a_story_for_each(league: Conspiracy) -> Story:
    """Every client hears that others are lost, as many as a sum allows, so that all but a few lose their keys."""
    everybody, honest = frozenset(league.plan.cohort), league.honest
    least = league.limits.survivors(len(everybody))
    kept = honest[: least - len(league.colluders) - 1]
    lost = [name for name in honest if name not in kept]

    def survivors(name: str) -> frozenset[str]:
        begin = honest.index(name)
        turned = [lost[(begin + step) % len(lost)] for step in range(len(lost))]
        return everybody - frozenset([each for each in turned if each != name][: len(everybody) - least])

    return Story(survivors=Late(survivors))


def holders_in_league(league: Conspiracy, partners: bool) -> Story:
    """Of the first client's holders those who are not the server's are said to be lost; it masks with them, or with
    the server's alone."""
    victim, everybody = league.honest[0], frozenset(league.plan.cohort)

    def lost() -> frozenset[str]:
        return frozenset(league.sealed.get(victim, {}).keys() - {victim} - league.colluders)

    def absent(name: str) -> frozenset[str]:
        kept = league.colluders | (lost() if partners else frozenset())
        return everybody - kept if name == victim else frozenset()

    return Story(absent=Late(absent), survivors=Late(lambda name: everybody - lost()))


def garbled(league: Conspiracy) -> Story:
    """Nobody can use the first client's seed shares, half hear that it survived, and all complain."""
    victim, everybody = league.honest[0], frozenset(league.plan.cohort)
    return Story(survivors=split(league, 0.5), garbled={victim: everybody})


def impostors(league: Conspiracy) -> Story:
    """The first client gets round keys of all others that the server made: it would be alone among strangers."""
    return Story(forged={league.honest[0]: frozenset(league.honest[1:])})


def same_impostors(share: float) -> Deviation:
    """Everybody gets the server's keys in place of those of the same part of the honest clients."""

    def story(league: Conspiracy) -> Story:
        ghosts = frozenset(league.honest[len(league.honest) - round(share * len(league.honest)) :])
        return Story(forged=dict.fromkeys(league.honest, ghosts))

    return story


def changed(data: st.DataObject, known: Deviation, league: Conspiracy) -> Story:
    """A known attack, or the truth, with some clients told something else at some stages."""
    everybody, story = frozenset(league.plan.cohort), known(league)
    some = st.frozensets(st.sampled_from(sorted(everybody)), max_size=4)
    told = {}
    for what in ("heard", "absent", "strangers", "survivors", "again", "garbled", "forged"):
        said = getattr(story, what)
        if isinstance(said, Late):
            continue
        others = dict(said)
        for name in data.draw(st.lists(st.sampled_from(league.honest), max_size=3, unique=True), label=what):
            usual = frozenset() if what in ("absent", "strangers", "garbled", "forged") else everybody
            others[name] = others.get(name, usual) ^ data.draw(some)
        told[what] = others
    return replace(story, **told)

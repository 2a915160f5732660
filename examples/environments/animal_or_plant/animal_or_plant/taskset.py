"""animal-or-plant: the model says whether a word names an animal or a plant (one turn, no tools)."""

import verifiers.v1 as vf

SYSTEM = "Say whether a word names an animal or a plant."
WORDS = {
    "animal": """
        badger bear beaver bee beetle camel carp cobra crab crane crow deer donkey eagle eel falcon ferret flamingo
        fox frog gecko goat goose gorilla hare hawk hedgehog heron hippo horse hyena jackal jellyfish kangaroo koala
        lizard lobster lynx mole monkey moose mosquito moth mouse octopus otter owl panther parrot penguin pigeon
        rabbit raccoon raven salmon scorpion seal shark sheep shrimp skunk sloth snail sparrow spider squid squirrel
        stork swan tiger toad trout turkey turtle walrus wasp whale wolf wombat zebra
    """,
    "plant": """
        acacia alder almond aloe apple aspen bamboo barley basil beech begonia birch blackberry broccoli cabbage
        cactus carrot cedar celery cherry chestnut clover coriander cotton cucumber cypress daffodil daisy dandelion
        elm fern fig garlic geranium ginger grape hazel heather hemlock holly hyacinth iris ivy jasmine juniper
        lavender leek lettuce lilac lily lotus magnolia maize maple marigold mint moss mulberry nettle oak olive
        onion orchid parsley pea peony pine poplar poppy potato primrose radish rosemary rye sage spinach thistle
        thyme tulip willow
    """,
}


class AnimalOrPlantData(vf.TaskData):
    """One word and what it names."""

    answer: str


class AnimalOrPlantTask(vf.Task[AnimalOrPlantData]):
    """Two rewards: the right answer counts 1.0, and one of the two words 0.2."""

    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        """Return 1 for the right word."""
        return float(first_word(trace) == self.data.answer)

    @vf.reward(weight=0.2)
    async def known(self, trace: vf.Trace) -> float:
        """Return 1 for one of the two words."""
        return float(first_word(trace) in WORDS)

    @vf.metric
    async def words(self, trace: vf.Trace) -> float:
        """Return the number of words in the answer."""
        return float(len(trace.last_reply.split()))


def first_word(trace: vf.Trace) -> str:
    """Return the answer's first word, in small letters, without the punctuation around it."""
    return next(iter(trace.last_reply.split()), "").strip(".,:;!*\"'").lower()


class AnimalOrPlantConfig(vf.TasksetConfig):
    """Arguments of the environment."""

    examples: int = 2
    """Solved examples before the question, 0 to 4."""


class AnimalOrPlantTaskset(vf.Taskset[AnimalOrPlantTask, AnimalOrPlantConfig]):
    """One task for each word."""

    def load(self) -> list[AnimalOrPlantTask]:
        """Return the tasks. The examples are earlier turns of the conversation."""
        shown: vf.Messages = []
        for word, answer in (("dog", "animal"), ("rose", "plant"), ("wheat", "plant"), ("cat", "animal")):
            shown += [vf.UserMessage(content=f"{word}:"), vf.AssistantMessage(content=answer)]
        before = shown[: 2 * self.config.examples]
        return [
            AnimalOrPlantTask(
                AnimalOrPlantData(
                    system_prompt=SYSTEM, prompt=[*before, vf.UserMessage(content=f"{word}:")], answer=answer
                ),
                self.config.task,
            )
            for answer, words in WORDS.items()
            for word in words.split()
        ]

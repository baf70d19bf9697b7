"""Plots of stories, talks and letters: lists of steps, each with several wordings.

The slots in braces are filled by `stories`.
"""

Plot = tuple[tuple[str, ...], ...]

# {p} is the main person, {s} and {S} are "she" and "She", and {h} is "her". {q} is a friend, and
# {sib} a sister or brother.
_OPENINGS = (
    "{p} is {a_job}. {S} lives in {home}.",
    "One day {p} goes to {spot}.",
    "{p} lives in {home} with the {family} {sib}.",
    "There is a {mood} {job} in {home}. The name of the {job} is {p}.",
    "It is a {weather} day in {home}, and {p} is {mood}.",
    "This is a short story about {p}.",
    "This story is about the king and {p}, {h} best friend.",
    "In the middle of the life of {p} there is a place: {home}.",
    "{p} is a writer with {h} own computer and {h} own car.",
)
_ENDS = (
    "Then {s} goes home to {home}.",
    "In the night {s} sleeps well.",
    "{p} is {mood} now.",
    "{S} says goodbye to {q}.",
    "After that {s} reads a poem and sleeps.",
    "That was a good day for {p}.",
    "{S} thinks of {q} and sleeps.",
    "At the end of the day all are {mood}.",
)
PLOTS: tuple[Plot, ...] = (
    (
        _OPENINGS,
        ("{p} visits {land}.", "{p} goes to {land} with {h} {thing}.", "{p} wants to see {land}."),
        (
            "{S} sees {an_animal}.",
            "There {s} finds {an_animal}.",
            "{S} walks in the sun and sees {an_animal}.",
        ),
        (
            "It is {size}.",
            "The {animal} is {size} and {color}.",
            "The {animal} is {size} and hungry.",
        ),
        (
            "The {animal} runs away.",
            "The {animal} eats {a_food}.",
            "It looks at {p} and sleeps.",
            "It is not there now.",
        ),
        (
            "{p} says: I saw {an_animal} in {land}!",
            "{S} tells {q} about the {animal}.",
            "{S} likes the {animal}.",
        ),
        _ENDS,
    ),
    (
        _OPENINGS,
        (
            "{p} has {a_thing}. It is {color}.",
            "{p} buys a {color} {thing}.",
            "{S} holds a {color} {thing}.",
        ),
        ("{S} meets {q} in {spot}.", "{q} comes to {spot} too.", "{S} shows the {thing} to {q}."),
        (
            "{q} wants the {thing}.",
            '{q} says: "What a nice {thing}!"',
            "{q} asks: May I hold your {thing}?",
        ),
        (
            "{p} gives the {thing} to {q}.",
            "{p} turns around and gives it to {q}.",
            "{p} says: Please take it.",
        ),
        (
            "{q} is {mood} and says: Thank you, {p}.",
            "Now {q} has the {thing}.",
            "{q} gives {p} {a_food}.",
        ),
        _ENDS,
    ),
    (
        _OPENINGS,
        (
            "{p} lost {h} {color} {thing}.",
            "The {thing} of {p} is not in {spot}.",
            "{p} cannot find {h} {thing}.",
        ),
        (
            "{S} looks in {spot2}.",
            "{S} asks {q}.",
            "{S} looks for it all day.",
            "{S} is tired and sad.",
        ),
        ("{q} helps {p}.", "{q} says: I can help you.", "{q} looks in {spot} too."),
        (
            "{q} finds the {thing} in {spot}.",
            "The {thing} is in {spot}.",
            "The {animal} has the {thing}!",
        ),
        (
            "{p} is happy and thanks {q}.",
            "{p} says: You are a good friend.",
            "{p} and {q} eat {a_food}.",
        ),
        _ENDS,
    ),
    (
        _OPENINGS,
        ("{p} has {n} {foods}.", "{p} buys {n} {foods} in the market.", "{S} finds {n} {foods}."),
        ("{S} eats {k} of the {foods}.", "{S} gives {k} of them to {q}.", "{q} takes {k} of them."),
        (
            "Now {s} has {rest} {foods}.",
            "Then there are {rest} {foods}.",
            "{n} minus {k} is {rest}.",
        ),
        ("{q} likes {foods}.", "{q} has no {foods}.", "{q} says: {Foods} are {food_color}."),
        (
            "They sit in {spot} and talk.",
            "They play a game, and {q} has won it.",
            "They tell a joke and laugh. The joke has a meaning.",
            "{p} and {q} play in {spot}.",
            "{q} sings and {p} plays the drum.",
        ),
        _ENDS,
    ),
    (
        _OPENINGS,
        (
            "In the morning {p} goes to work.",
            "{p} works in {spot}.",
            "{p} opens the door and goes out.",
        ),
        (
            "The rain falls on the road.",
            "The weather is {weather}, and the sea is near.",
            "{S} hears the words of the president, who is tall.",
            "The wind is cold and the sky is {color}.",
            "It is warm, and birds sing.",
        ),
        ("{S} reads a letter from {q}.", "{q} waits at the door.", "{S} sees {q} under a tree."),
        (
            "{q} has a {color} {thing}.",
            "{q} is late and runs fast.",
            "They drink tea and eat {foods}.",
        ),
        (
            "{p} laughs and sits down.",
            "They talk about the same thing all day.",
            "{q} makes a fire with old wood.",
        ),
        _ENDS,
    ),
    (
        _OPENINGS,
        (
            "{p} wants to make soup.",
            "{p} cooks for {q} and {sib}.",
            "{p} has people in the house today.",
        ),
        (
            "{S} needs {n} {foods}, a pot and some salt.",
            "{S} goes to the shop with a list.",
            "{S} washes the table.",
        ),
        (
            "In the shop {s} buys {foods} and bread.",
            "{S} pays with money.",
            "There are only {k} {foods} left.",
        ),
        (
            "{q} brings flowers.",
            "{q} comes with milk and {a_food}.",
            "{q} and {sib} sit at the table.",
        ),
        (
            "The soup is hot and good.",
            "They eat, drink and laugh.",
            "{sib} sings a song.",
            "{q} asks for more soup.",
        ),
        _ENDS,
    ),
    (
        _OPENINGS,
        (
            "{p} and {q} take the train to {land}.",
            "{p} rides to the river.",
            "{p} walks up the mountain with {q}.",
        ),
        (
            "The water is deep and {color}.",
            "They see snow and stars.",
            "The road is long.",
            "{q} is afraid.",
        ),
        (
            "{p} swims and {q} waits.",
            "{S} jumps over a stone.",
            "{p} throws the {thing} far away.",
            "{S} falls down.",
        ),
        (
            "{An_animal} hears them and hides.",
            "{q} calls: Come back, {p}!",
            "{q} carries the {thing}.",
        ),
        (
            "It is dark, and the moon is up.",
            "They see a planet if the sky is dark.",
            "They are lost but not afraid.",
            "{p} hopes to come again next year.",
        ),
        _ENDS,
    ),
    (
        _OPENINGS,
        (
            "{p} has {an_animal}. It is {size}.",
            "{p} finds a small {animal}.",
            "The {animal} of {p} is {size}.",
        ),
        ("The {animal} is hungry.", "The {animal} wants to eat.", "The {animal} looks at {p}."),
        ("{S} gives it {a_food}.", "{S} asks {q} for {a_food}.", "{p} has no {foods}."),
        (
            "The {animal} does not like {foods}.",
            "The {animal} eats and sleeps.",
            "It plays with the {thing}.",
        ),
        (
            "{Animals} live in {animal_home}.",
            "{q} likes {animals}.",
            "{q} says that {animals} live in {animal_home}.",
        ),
        _ENDS,
    ),
)
TALKS: tuple[Plot, ...] = (
    (
        (
            "{p}: Hello, {q}.",
            "{p}: Good day, {q}. It is nice to meet you.",
            "{p}: Hello. My name is {p}.",
        ),
        (
            "{q}: Hello, {p}. How are you?",
            "{q}: Hello! Can I help you?",
            "{q}: Good day. What do you want?",
        ),
        (
            "{p}: I am {mood}. Thank you.",
            "{p}: I have a {color} {thing}.",
            "{p}: I look for my {thing}.",
        ),
        (
            "{q}: Where do you live?",
            "{q}: Where is your {thing}?",
            "{q}: Where can I see {an_animal}?",
        ),
        (
            "{p}: I live in {home}.",
            "{p}: It is in {spot}.",
            "{p}: {Animals} live in {animal_home}.",
        ),
        (
            "{q}: Do you like {foods}?",
            "{q}: What do you like?",
            "{q}: Which food do people like there?",
        ),
        (
            "{p}: I like {likes}.",
            "{p}: Yes, {foods} are good.",
            "{p}: No, I do not like {foods}.",
            "{p}: I like it.",
        ),
        (
            "{q}: That is nice. Take care!",
            "{q}: You are welcome in my little house.",
            "{q}: Goodbye, friends. I get up and hear the music.",
            "{q}: You speak nicely. That language is a model of the world.",
            "{q}: Is that true? I like it too.",
            "{q}: Thank you, {p}.",
            "{q}: Sorry, I must go now. Ask me again.",
        ),
    ),
    (
        ("{p}: Can you help me, {q}?", "{p}: Please help me, {q}.", "{p}: Give me your {thing}!"),
        (
            "{q}: Sorry, I cannot help you now.",
            "{q}: Yes, I can help.",
            "{q}: Please say it in a nice way.",
        ),
        (
            "{p}: I want to {task} my {thing}.",
            "{p}: Is there something else?",
            "{p}: For whom is this thing?",
            "{p}: Please tell me, how much is it?",
        ),
        (
            "{q}: You need {tool}.",
            "{q}: Use {tool}.",
            "{q}: You can {task} it with {tool}.",
            "{q}: It is not mine.",
        ),
        (
            "{p}: What does the text say?",
            "{p}: When did you read this text?",
            "{p}: My brother gave it to me.",
        ),
        (
            "{q}: It does not say.",
            "{q}: It is brief, and true from a to z.",
            "{q}: The book says that it is {color}.",
            "{q}: I did not read more of it.",
        ),
        (
            "{p}: Thank you for your help.",
            "{p}: That is all. Thank you.",
            "{p}: I made a list of questions, ordered and alphabetical. Sleep well.",
            "{p}: There are many places after this one.",
            "{p}: I work with it, no less.",
        ),
    ),
    (
        ("Dear {q},", "My dear {q},", "To {q} in {spot}:"),
        ("I am in {land}.", "Today I went to {land}.", "I did go to {land} with {sib}."),
        ("I saw {an_animal}.", "I found {a_thing}.", "People call it the land of the {animal}."),
        (
            "It was {size}.",
            "I read a large book about it.",
            "It is exactly as you say.",
            "I write this with a pen.",
        ),
        (
            "The {food} here is good.",
            "Here people eat {foods}.",
            "You must see the number of {animals} here.",
        ),
        (
            "Please write an answer.",
            "Your answers are short, but I like them.",
            "Turn around the letter and read on.",
            "Please bring me a {color} {thing}.",
            "What is the number of your house?",
        ),
        ("Your friend {p}.", "Your {family2} {p}.", "With all good words, {p}."),
    ),
)

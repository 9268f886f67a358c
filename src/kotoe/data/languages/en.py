"""English: articles, plurals, words and templates."""

from __future__ import annotations

import re

from kotoe.data.languages.base import CLOCKS, HALF_CLOCKS, Form, Language, split, things

# Said without an article: stuff, games, materials. Plurals are found by their ending.
_MASS = frozenset(
    word.strip()
    for word in """
american football, badminton, bacon, baseball equipment, basketball hoops, bowling, bread, broccoli, bubble tea
butter, candy, champagne, cheese, chocolate, coffee, cooked rice, coral, corn, corn on the cob, curry, curry and rice
curry rice, custard, dango, dice, dna, electricity, field hockey, flatbread, fog, garlic, ginger, golf, green tea
hair, high voltage, honey, ice, ice hockey, lacrosse, luggage, mahjong, mate, milk
mount fuji, noodle soup, oden, paella, pasta, performing arts, ping pong, popcorn, pouring liquid, ramen, red wine
rice, sake, salt, shaved ice, soap, soft ice cream, soft serve, spaghetti, sushi, table tennis
tempura, tennis, thread, toilet paper, tokyo tower, whisky, wine, wood, yarn, zzz, infinity, information, om
input latin lowercase, input latin uppercase, mrs. claus, mx claus, palms up together, santa claus
aries, taurus, gemini, cancer, leo, virgo, libra, scorpio, sagittarius, capricorn, aquarius, pisces, ophiuchus
""".replace("\n", ",").split(",")
) - {""}
_MASS_HEADS = frozenset({"meat", "money"})
_THE = frozenset({"earth", "kaaba", "milky way", "moon", "sun", "statue of liberty"})
_PLURAL = frozenset({"children", "dice", "feet", "men", "people", "skis", "teeth", "women"})
_SINGULAR = frozenset({"christmas", "gas", "lens", "new year's", "news", "rhinoceros", "series"})  # despite the s
_AFTER_HEAD = re.compile(
    r" (?:with|of|in|on|showing|at|for|from|behind|over|without|facing|not|between|taking|pouring|getting|kneeling|"
    r"standing|wearing|holding|lifting|done|tilted|under|and) "
)
_A = re.compile(r"uni(?!mp)|use|euro|ewe|one\b|one-|ufo|eu\b|u\b", re.IGNORECASE)  # a, though the letter is a vowel
_AN = re.compile(r"hour|honest|8|x-ray|suv\b|sos\b|ng\b|(?:[AEFHILMNORSX])\b(?!')")  # an, though it is none


def _english(phrase: str) -> Form:
    return Form(n=phrase, a=with_article(phrase))


def with_article(phrase: str) -> str:
    """'a cat', 'an apple', 'grapes', 'the Statue of Liberty': the phrase as English puts it into a sentence."""
    bare = phrase.lower()
    for size in _SIZES["small"] + _SIZES["large"]:
        bare = bare.removeprefix(size + " ")
    if bare in _THE:
        return f"the {phrase}"
    head = _AFTER_HEAD.split(bare)[0]
    last = head.split()[-1]
    plural = last in _PLURAL or (last.endswith("s") and not last.endswith(("ss", "us", "is")) and last not in _SINGULAR)
    if bare in _MASS or head in _MASS_HEADS or plural or head.endswith((" o'clock", "-thirty")):
        return phrase
    return f"{article(phrase)} {phrase}"


def article(phrase: str) -> str:
    """'a' or 'an', by how the phrase sounds."""
    if _AN.match(phrase) or _AN.match(phrase.lower()):
        return "an"
    return "an" if phrase[0].lower() in "aeiou" and not _A.match(phrase) else "a"


def _rename(name: str) -> str:
    """'flag: Japan' as 'flag of Japan', 'woman: red hair' as 'woman with red hair', 'keycap: 1' as 'keycap 1'."""
    name = name.replace(" & ", " and ")
    head, colon, rest = name.partition(": ")
    if not colon:
        return name
    if head == "flag":
        return f"flag of the {rest}" if _PLACES_WITH_THE.search(rest) else f"flag of {rest}"
    if head in ("kiss", "couple with heart", "family"):
        people = rest.split(", ")
        counted = [f"a {p}" if people.count(p) == 1 else f"two {_MANY.get(p, p + 's')}" for p in dict.fromkeys(people)]
        joined = " and ".join(filter(None, (", ".join(counted[:-1]), counted[-1])))
        return f"{head} {'between' if head == 'kiss' else 'with'} {joined}".replace("heart with", "heart,")
    if rest == "bald":
        return f"bald {head}"
    if head in ("person", "man", "woman"):
        return f"{head} with {'a ' if rest == 'beard' else ''}{rest}"
    return f"{head} {rest}"


_MANY = {"man": "men", "woman": "women"}
_PLACES_WITH_THE = re.compile(
    r"^United|Islands$|Republic$|^(?:Bahamas|Comoros|Gambia|Maldives|Netherlands|Philippines)$"
)
_SIZES = split({"small": "small,tiny,little", "large": "large,big,huge"})


_EN_PLACES = {
    "centre": "in the center,in the middle",
    "top left": "in the top left corner,in the upper left corner,at the top left",
    "top": "at the top",
    "top right": "in the top right corner,in the upper right corner,at the top right",
    "left": "on the left side,on the left",
    "right": "on the right side,on the right",
    "bottom left": "in the bottom left corner,in the lower left corner,at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right corner,in the lower right corner,at the bottom right",
}


_EN_COLOURS = split(
    {c: c for c in "white black red orange yellow green blue purple pink brown".split()}
    | {"light blue": "light blue,sky blue", "grey": "gray,grey"}
)

_THINGS = """
🐕‍🦺 service dog, assistance dog; 🐗 boar, wild boar; 🐽 pig nose, pig snout; 🐑 sheep, ewe
🐪 camel, dromedary; 🐫 two-hump camel, bactrian camel; 🦙 llama, alpaca; 🦏 rhinoceros, rhino
🦛 hippopotamus, hippo; 🐿️ chipmunk, squirrel; 🐔 chicken, hen; 🐓 rooster, cockerel; 🐤 baby chick, chick
🐢 turtle, tortoise; 🐈 cat; 🐕 dog; 🦕 sauropod, brontosaurus, long-necked dinosaur; 🦖 T-Rex, tyrannosaurus
🦭 seal, sea lion; 🐥 front-facing baby chick, chick seen from the front; 🐚 seashell, spiral shell, shell
🐛 caterpillar, bug; 🐝 bee, honeybee; 🐞 ladybug, ladybird, lady beetle; 🦗 cricket, grasshopper
🕸️ spider web, cobweb; 🪱 worm, earthworm; 🦠 microbe, germ; 💐 bouquet, bunch of flowers; 🌼 blossom, daisy
🌳 tree, deciduous tree; 🌲 evergreen tree, fir tree; 🌴 palm tree, palm; 🌾 sheaf of rice, rice plant
🍀 four-leaf clover, clover; 🍃 leaves in the wind, leaf fluttering in wind; 🍄 mushroom, toadstool
🍊 tangerine, orange, mandarin; 🍎 apple, red apple; 🥝 kiwi, kiwi fruit; 🍆 eggplant, aubergine
🌽 ear of corn, corn, corn on the cob; 🌶️ hot pepper, chili pepper; 🥬 leafy green, lettuce
🥜 peanuts, peanut; 🫘 beans, kidney beans; 🍞 bread, loaf of bread; 🥖 baguette, baguette bread
🥞 pancakes, stack of pancakes; 🥐 croissant; 🧀 cheese, cheese wedge, piece of cheese
🍖 meat on the bone, meat on bone; 🥩 steak, cut of meat; 🍗 chicken leg, drumstick, poultry leg
🍔 hamburger, burger; 🍟 french fries, fries; 🌭 hot dog, hotdog
🍳 ! fried egg in a pan, frying pan with an egg; 🥘 paella, shallow pan of food; 🍲 pot of food, stew
🥣 bowl with spoon, bowl and spoon; 🥗 salad, green salad; 🥫 can of food, canned food; 🍱 bento box, bento
🍙 rice ball, onigiri; 🍚 bowl of rice, cooked rice; 🍛 curry and rice, curry, curry rice
🍜 bowl of noodles, ramen, noodle soup, steaming bowl; 🍝 spaghetti, pasta
🍠 sweet potato, roasted sweet potato; 🍤 fried shrimp, tempura; 🥟 dumpling, gyoza
🥡 takeout box, takeaway box; 🦐 shrimp, prawn; 🍦 soft serve, ice cream cone, soft ice cream
🍩 doughnut, donut; 🍪 cookie, biscuit; 🎂 birthday cake, cake; 🍰 slice of cake, shortcake, piece of cake
🍫 chocolate bar, chocolate, bar of chocolate; 🍬 candy, piece of candy; 🍮 custard, pudding
🍯 honey pot, honey, jar of honey; 🥛 glass of milk, milk; ☕ cup of coffee, coffee, hot beverage
🍵 cup of green tea, green tea, teacup without handle; 🍶 sake, bottle of sake
🍾 bottle of champagne, champagne, bottle with popping cork; 🍷 glass of wine, wine, wine glass, red wine
🍸 cocktail, cocktail glass, martini; 🍺 mug of beer, beer, beer mug; 🍻 clinking beer mugs, two mugs of beer
🥂 clinking glasses, champagne glasses; 🥃 glass of whisky, whisky, tumbler glass
🥤 cup with straw, soft drink; 🧃 juice box, beverage box; 🧊 ice cube, ice, block of ice
🍽️ plate with fork and knife, fork and knife with plate; 🔪 kitchen knife, knife
🫗 glass pouring water, pouring liquid; 🏺 amphora, vase; 🌍 globe showing Europe and Africa, earth, globe
🌎 globe showing the Americas; 🌏 globe showing Asia and Australia; 🗻 Mount Fuji
🏔️ snow-capped mountain, snowy mountain; 🏖️ beach with umbrella, beach
🏝️ desert island, tropical island, island; 🏗️ ! building under construction, construction site
🧱 brick, bricks; 🪵 log, wood; 🏘️ houses, row of houses; 🏚️ derelict house, abandoned house, haunted house
🏡 house with garden, house with a garden; 🗼 Tokyo Tower; 💒 wedding chapel, wedding; 🛕 Hindu temple
⛩️ Shinto shrine, torii gate, torii; 🕋 Kaaba; 🌁 ! foggy city, city in the fog
🌃 city at night, night with stars; 🌆 city at dusk, cityscape at dusk; 🏙️ cityscape, skyline; 🌌 Milky Way
♨️ hot springs, hot spring; 🎠 carousel horse, merry-go-round, carousel; 🛝 slide, playground slide
🎡 ferris wheel; 🚂 steam locomotive, locomotive, steam train; 🚃 railway car, train car
🚇 metro, subway train, subway; 🚗 car, automobile; 🚘 oncoming car, oncoming automobile
🚙 SUV, sport utility vehicle; 🚚 delivery truck, truck; 🚛 semi-trailer truck, articulated lorry
🏎️ racing car, race car; 🏍️ motorcycle, motorbike; 🛵 motor scooter, scooter, moped; 🛺 auto rickshaw, tuk-tuk
🚲 bicycle, bike; 🛣️ highway, motorway; 🛢️ oil drum, oil barrel; ⛽ gas pump, fuel pump, gas station
🚨 police car light, siren; 🚦 vertical traffic light, traffic light; 🛞 wheel, tire
🚧 ! construction barrier, road barrier; 🛟 life ring, ring buoy, lifebuoy; ⛵ sailboat, sailing boat, yacht
🛥️ motorboat, motor boat; 🚢 ship; ✈️ airplane, plane; 🛫 ! departing airplane, airplane taking off
🛬 ! arriving airplane, airplane landing; 🚠 mountain cableway, cable car; 🛸 flying saucer, UFO
🛎️ bellhop bell, service bell; 🧳 suitcase, luggage; ⌛ ! hourglass
⏳ ! hourglass with flowing sand, running hourglass; ⌚ watch, wristwatch; ⏲️ timer clock, kitchen timer
🕰️ mantel clock, mantelpiece clock; 🌙 crescent moon, moon; ⭐ star, yellow star
🌦️ sun behind a rain cloud, sun behind rain cloud; 🌬️ wind face, blowing wind
🌤️ sun behind a small cloud, sun behind small cloud; 🌥️ sun behind a large cloud, sun behind large cloud
⛅ sun behind a cloud, sun behind cloud; 🌀 cyclone, swirl; ☔ umbrella in the rain, umbrella with rain drops
⛱️ beach umbrella, umbrella on ground, parasol; ⚡ lightning bolt, high voltage; 🔥 fire, flame
💧 drop of water, droplet, water drop; 🌊 wave, water wave, ocean wave; 🎃 jack-o'-lantern, Halloween pumpkin
🎍 kadomatsu, pine decoration; 🎏 carp streamer, koinobori; 🎁 gift, present, wrapped gift
🥇 gold medal, 1st place medal; 🥈 silver medal, 2nd place medal; 🥉 bronze medal, 3rd place medal
⚽ soccer ball, football; 🏈 American football; 🎾 tennis ball, tennis; 🎳 bowling ball and pins, bowling
🏏 cricket bat and ball, cricket game; 🏑 field hockey stick, field hockey
🏒 ice hockey stick and puck, ice hockey; 🥍 lacrosse stick, lacrosse
🏓 ping pong paddle, ping pong, table tennis; 🏸 badminton racket, badminton
🥋 martial arts uniform, karate uniform; ⛳ flag in a hole, golf flag, flag in hole
🎣 fishing rod, fishing pole; ⛸️ ice skate; 🎯 bullseye, dartboard, target; 🔫 water pistol, water gun
🎱 billiard ball, 8 ball, pool 8 ball; 🎮 game controller, video game controller, video game
🎲 die, game die, dice; 🧩 puzzle piece, jigsaw piece; 🪩 disco ball, mirror ball
🪆 nesting dolls, matryoshka doll; ♠️ spade suit, spade; ♟️ chess pawn, pawn; ♣️ club suit, club
♦️ diamond suit; 🃏 joker, joker card; 🀄 mahjong tile, mahjong red dragon
🎴 flower playing cards, hanafuda card; 🎭 theater masks, performing arts; 🖼️ framed picture, painting
🎨 artist palette, paint palette; 🧵 spool of thread, thread; 🧶 ball of yarn, yarn; 👓 glasses, eyeglasses
👔 necktie, tie; 👕 T-shirt, t-shirt; 👖 jeans, trousers, pants; 🧥 coat, jacket; 👚 blouse, woman's clothes
👛 purse, coin purse; 👝 clutch bag, pouch; 🎒 backpack, school bag; 🩴 flip-flop, thong sandal
👞 men's shoe, man's shoe, leather shoe; 👟 running shoe, sneaker; 👠 high-heeled shoe, high heel
👡 women's sandal, woman's sandal, sandal; 🩰 ballet shoes, ballet slippers
👢 women's boot, woman's boot, boot; 👒 women's hat, woman's hat, sun hat; 🧢 baseball cap, billed cap, cap
⛑️ rescue worker's helmet; 💎 gemstone, gem, diamond, gem stone; 🔇 muted speaker
🔈 speaker at low volume, speaker low volume; 🔉 speaker at medium volume, speaker medium volume
🔊 speaker at high volume, speaker high volume; 📯 post horn, postal horn
🔕 ! crossed-out bell, silenced bell; 🎵 musical note, music note; 🎶 musical notes, music notes
🎤 microphone, mic; 🎧 headphones, headphone; 🎹 piano keyboard, piano, musical keyboard; 🪘 long drum, conga
📱 mobile phone, smartphone, cell phone, phone; 📲 mobile phone with an arrow, mobile phone with arrow
🔌 electric plug, power plug; 💻 laptop, laptop computer; 🖥️ desktop computer, computer
💽 minidisc, computer disk; 💿 CD, compact disc, optical disk; 📀 DVD; 🎬 clapperboard, clapper board
📺 television, TV; 📼 videotape, videocassette, VHS tape; 🔍 magnifying glass tilted left, magnifying glass
💡 light bulb, lightbulb; 🔦 flashlight, torch; 🏮 red paper lantern, paper lantern; 📕 closed book, red book
📖 open book, book; 📚 books, stack of books; 📃 page with a curl, page with curl
📄 page facing up, sheet of paper; 💰 money bag, bag of money; 💴 yen banknote, yen bill
💵 dollar banknote, dollar bill; 💶 euro banknote; 💷 pound banknote, pound note
💹 rising chart with yen, chart increasing with yen; ✉️ envelope, letter; 📧 email, e-mail
📦 package, parcel, cardboard box; 📮 postbox, red mailbox; ✒️ black nib, pen nib; 🖌️ paintbrush
📝 memo, pencil and paper; 📈 rising chart, chart increasing; 📉 falling chart, chart decreasing
📌 pushpin, thumbtack; 📏 straight ruler, ruler; 🗑️ wastebasket, trash can; 🔒 ! padlock, locked padlock
🔓 ! open padlock, unlocked padlock; 🔏 ! padlock with a pen, padlock and pen
🔐 ! padlock with a key, padlock and key; ⛏️ pickaxe, pick; 🪚 saw, carpentry saw, handsaw; 🔧 wrench, spanner
⚖️ balance scale, scales; 🔗 chain link, link; 📡 satellite dish, satellite antenna
🩸 drop of blood, blood drop; 💊 pill, capsule; 🛗 elevator, lift; 🩹 adhesive bandage, bandage
🧬 DNA, DNA helix; 🩻 X-ray, x-ray; 🛋️ sofa and lamp, couch and lamp, sofa, couch; 🛁 bathtub, bath
🧴 bottle of lotion, lotion bottle; 🧻 roll of paper, toilet paper; 🧼 soap, bar of soap; 🪣 bucket, pail
🫧 bubbles, soap bubbles; 🛒 shopping cart, shopping trolley; 🪦 headstone, gravestone, tombstone
🗿 moai, Easter Island statue; 🪪 ID card, identification card; 📔 notebook with a decorative cover
🤣 ! face rolling on the floor laughing; 🤩 star-struck face; 🤭 face with hand over mouth; 💫 ! dizzy star
💨 ! puff of air, dashing away cloud; 💥 collision, explosion; ⚠️ warning sign; ⛔ no entry sign
🚫 prohibited sign; ☢️ radioactive sign; ☣️ biohazard sign; 🤱 ! breast-feeding woman; 💏 ! kissing couple
🏇 ! jockey on a racehorse; 🚳 no bicycles sign; 🚭 no smoking sign; 🚯 no littering sign
🚱 non-potable water sign; 🚷 no pedestrians sign; 📵 no mobile phones sign; 🔞 no one under eighteen sign
🚰 potable water sign, drinking water sign; ✖️ multiplication sign, multiply; ➕ plus sign, plus
➖ minus sign, minus; ➗ division sign, divide; ♾️ infinity sign; ℹ️ information sign; ©️ copyright sign
®️ registered sign; ™️ trade mark sign; 🧑‍🎄 Mx Claus; 🛂 passport control sign; 🛃 customs sign
🛄 baggage claim sign; 🛅 left luggage sign; 🚹 men's room sign; 🚺 women's room sign; 🚻 restroom sign
🚾 water closet sign; 🚸 children crossing sign; 🖖 Vulcan salute; ✡️ Star of David; 🕉️ om symbol
🔠 input symbol for uppercase letters; 🔡 input symbol for lowercase letters; 🔢 input symbol for numbers
🔣 input symbol for symbols; 🔤 input symbol for letters
"""
_HOURS = "twelve one two three four five six seven eight nine ten eleven".split()
_THINGS += "".join(
    f"{full} clock showing {word} o'clock, {word} o'clock\n{half} clock showing half past {word}, {word}-thirty\n"
    for full, half, word in zip(CLOCKS, HALF_CLOCKS, _HOURS)
)

ENGLISH = Language(
    tag="en",
    colours=_EN_COLOURS,
    colour_nouns=_EN_COLOURS,
    sizes=_SIZES,
    places=split(_EN_PLACES),
    short_places=split(
        {
            "centre": "center,middle",
            "top left": "top left,upper left",
            "top right": "top right,upper right",
            "bottom left": "bottom left,lower left",
            "bottom right": "bottom right,lower right",
        }
        | {p: p for p in ("top", "left", "right", "bottom")}
    ),
    relations=split(
        {
            "left_of": "to the left of,left of",
            "right_of": "to the right of,right of",
            "above": "above",
            "below": "below,under",
        }
    ),
    sides=split(
        {
            "left_of": "on the left",
            "right_of": "on the right",
            "above": "at the top",
            "below": "at the bottom",
        }
    ),
    single={
        (True, False): (
            "{x.a} on {bg.a} background",
            "{bg} background, {x}",
            "{x} on {bg.a} background",
            "{x}, {bg} background",
            "{bg.a} background with {x.a}",
            "{x.a} against {bg.a} background",
            "a picture of {x.a} on {bg.a} background",
            "a drawing of {x.a}, {bg} background",
        ),
        (True, True): (
            "{x.a} {at} on {bg.a} background",
            "{bg} background, {x.a} {at}",
            "{x.a} {at} of {bg.a} background",
            "{x}, {at.short}, {bg} background",
            "{bg.a} background with {x.a} {at}",
            "a picture of {x.a} {at}, {bg} background",
        ),
        (False, False): ("{x.a}", "{x}", "a picture of {x.a}", "a drawing of {x.a}"),
        (False, True): ("{x.a} {at}", "{x} {at}", "{x}, {at.short}", "a picture of {x.a} {at}"),
    },
    pair={
        (True, True): (
            "{x.a} {rel} {y.a} on {bg.a} background",
            "{bg} background, {x.a} {rel} {y.a}",
            "{x} {rel} {y}, {bg} background",
            "{x.a} {p1} and {y.a} {p2} on {bg.a} background",
            "{bg.a} background with {x.a} {rel} {y.a}",
            "a picture of {x.a} {rel} {y.a}, {bg} background",
        ),
        (True, False): (
            "{x.a} and {y.a} on {bg.a} background",
            "{bg} background, {x} and {y}",
            "{bg.a} background with {x.a} and {y.a}",
        ),
        (False, True): (
            "{x.a} {rel} {y.a}",
            "{x} {rel} {y}",
            "{x.a} {p1} and {y.a} {p2}",
            "a picture of {x.a} {rel} {y.a}",
        ),
        (False, False): ("{x.a} and {y.a}", "{x} and {y}", "a picture of {x.a} and {y.a}"),
    },
    forms=_english,
    sized="{size} {x}",
    things=things(_THINGS),
    rename=_rename,
)

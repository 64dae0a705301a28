"""Which language a text is in, of the thirty that IFEval asks for: by script, then by common words and letters of each language. No torch.

Deterministic and small, where IFEval's own code samples n-gram profiles; made for texts of a sentence or more.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "HANGUL": ("ko",), "THAI": ("th",), "BENGALI": ("bn",), "TAMIL": ("ta",), "TELUGU": ("te",), "KANNADA": ("kn",), "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",), "MALAYALAM": ("ml",), "HEBREW": ("he",), "HIRAGANA": ("ja",), "KATAKANA": ("ja",), "CJK": ("zh",), "GREEK": ("el",),
    "LATIN": ("en", "es", "pt", "fr", "de", "it", "pl", "vi", "fi", "sw"), "CYRILLIC": ("ru", "uk", "bg"), "ARABIC": ("ar", "fa", "ur"),
    "DEVANAGARI": ("hi", "mr", "ne"),
}  # fmt: skip

_WORDS = {
    "en": "the of and to in is that for it with as was on are be this by at from or have an not you his her they we but which will can has i my your",
    "es": "el la de que y en los del se las por un para con una su al lo como más pero sus le ya este sí porque esta entre cuando muy sin sobre es son",
    "pt": "o a de que e do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu sua ou quando muito nos já eu é são também pelo",
    "fr": "le la de et les des en un une du que est pour qui dans ce il sur pas plus par au avec ne se sont elle nous vous mais ou cette ses leur je aux",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass sie nach wird bei einer ich",
    "it": "di che e la il un a per in una è sono mi si con ho non lo ma ti se le i da come ci questo qui della del nel al gli più anche alla dei delle",
    "pl": "w i na z się nie do to że jest o jak a po za od ale przez co są dla czy tak był już tylko jego jej ich który która może być oraz pod",
    "vi": "và của là có trong được cho với các một những không này đã người khi để đến về như từ tôi bạn sẽ cũng nhưng ra vào nhiều làm chúng",
    "fi": "ja on ei että se hän oli mutta niin kun kuin joka myös tai ovat sen mitä sitä ole jos minä sinä voi olla hyvin kanssa mukaan sekä tämä",
    "sw": "na ya wa kwa ni katika la za kuwa hii cha kama yake lakini au hiyo pia watu vya yao kwamba hivyo sana wako huo mimi wewe kila ili",
    "ru": "и в не на я что он с как это по но из у за к от так же все она вы бы для мы о были был его её или если когда чтобы которые",
    "uk": "і в не на що з як це по але із у за до від так же всі вона ви для ми про були був його її або якщо коли щоб які та є й ти",
    "bg": "и в не на че се за от да с по като са но как ще към този тази той тя бе си го му или които когато е съм ни ги още много",
    "ar": "في من على أن إلى هذا التي الذي هذه عن مع كان ما لا أو هو هي كل بعد بين قد لم ثم كما ذلك وقد غير حتى إذا",
    "fa": "و در به از که این را با است برای آن یک خود تا کرد بر هم نیز می شود شد یا ما اما باید اگر هر شما من بود های",
    "ur": "کے کی میں ہے اور سے کا کو اس نے پر ہیں یہ کہ ایک بھی تھا جو وہ کر نہیں تو ہو گیا کیا اپنے لیے آپ ہم ساتھ",
    "hi": "के में है की और से का को पर इस होता कि जो कर मे गया करने किया लिये अपने ने बनी नहीं तो ही या एवं दिया हो यह हैं था एक मैं भी",
    "mr": "आहे आणि या च्या मध्ये एक व ते हे की त्या तर असे म्हणून होते नाही आहेत केले साठी पण मी तुम्ही त्यांच्या हा ही करा आपल्या",
    "ne": "छ र को मा का हो यो लाई पनि ले गर्न भएको छन् एक हुन्छ तर त्यो यस गरेको भने हुन् तपाईं हामी म थियो गरी गर्ने",
}  # fmt: skip
_WORDS_OF = {language: frozenset(text.split()) for language, text in _WORDS.items()}

_LETTERS = {
    "es": "ñ¿¡", "pt": "ãõ", "fr": "œêèùçâîû", "de": "ßäöü", "it": "ìò", "pl": "łąęśżźćń", "vi": "ăđơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "fi": "äö", "ru": "ыэё", "uk": "іїєґ", "bg": "ъщ", "fa": "پچگژ", "ur": "ٹڈڑےںھہ", "mr": "ळ", "ne": "", "ar": "ةىأإؤئ",
}  # fmt: skip


def detect(text: str) -> str | None:
    """ISO 639-1 code of the text's language, None where it has no letters or only some of an unknown script."""
    text = unicodedata.normalize("NFC", re.sub(r"https?://\S+", " ", text)).lower()
    letters = Counter(unicodedata.name(one, "").split(" ")[0].split("-")[0] for one in text if one.isalpha())
    known = [(count, script) for script, count in letters.items() if script in _SCRIPTS]
    if not known:
        return None
    kana = letters["HIRAGANA"] + letters["KATAKANA"]
    script = "HIRAGANA" if kana and kana + letters["CJK"] >= max(known)[0] else max(known)[1]
    candidates = _SCRIPTS[script]
    if len(candidates) == 1:
        return candidates[0]
    tokens = (
        Counter(re.findall(r"[^\W\d_]+(?:[\u0900-\u097f]+)*", text))
        if script != "DEVANAGARI"
        else Counter(re.findall("[\u0900-\u097f]+", text))
    )
    size = max(1, sum(tokens.values()))
    scores = {}
    for language in candidates:
        common = sum(count for word, count in tokens.items() if word in _WORDS_OF[language]) / size
        marks = sum(text.count(letter) for letter in _LETTERS.get(language, "")) / max(1, sum(letters.values()))
        scores[language] = common + 3 * marks
    best = max(candidates, key=lambda language: scores[language])
    return best if scores[best] else candidates[0]

"""One sentence or two of each language that IFEval asks for."""

from __future__ import annotations

import pytest

from rorqual.eval.checkers import language

TEXTS = {
    "en": "The whale sings in the deep water and nobody hears it.", "es": "La ballena canta en el mar y nadie la escucha, pero sus crías sí.",
    "pt": "A baleia canta no mar e ninguém a ouve, mas os filhotes não dormem.", "fr": "La baleine chante dans la mer et personne ne l'entend.",
    "de": "Der Wal singt im Meer und niemand hört ihn, aber das ist nicht schlimm.", "it": "La balena canta nel mare e nessuno la sente, ma non è triste.",
    "pl": "Wieloryb śpiewa w morzu i nikt go nie słyszy, ale to nic.", "vi": "Cá voi hát dưới biển và không ai nghe thấy nó.",
    "fi": "Valas laulaa meressä eikä kukaan kuule sitä, mutta se ei ole surullinen.", "sw": "Nyangumi anaimba katika bahari na hakuna mtu wa kumsikia.",
    "ru": "Кит поёт в море, и никто его не слышит.", "uk": "Кит співає в морі, і ніхто його не чує, але він щасливий.",
    "bg": "Китът пее в морето и никой не го чува, но това е добре.", "ar": "الحوت يغني في البحر ولا أحد يسمعه إلى هذا اليوم.",
    "fa": "نهنگ در دریا آواز می‌خواند و کسی آن را نمی‌شنود.", "ur": "وہیل سمندر میں گاتی ہے اور کوئی اسے نہیں سنتا۔",
    "hi": "व्हेल समुद्र में गाती है और कोई उसे नहीं सुनता।", "mr": "व्हेल समुद्रात गाते आणि कोणीही ते ऐकत नाही, असे म्हणतात की ती एकटी आहे.",
    "ne": "ह्वेल समुद्रमा गाउँछ र कसैले पनि सुन्दैन, तर यो खुसी छ।", "ko": "고래는 바다에서 노래하지만 아무도 듣지 못한다.", "ja": "鯨は海で歌うが、誰も聞かない。",
    "zh": "鲸鱼在海里唱歌，没有人听见。", "th": "วาฬร้องเพลงในทะเล", "bn": "তিমি সমুদ্রে গান গায়।", "ta": "திமிங்கலம் கடலில் பாடுகிறது.", "te": "తిమింగలం సముద్రంలో పాడుతుంది.",
    "kn": "ತಿಮಿಂಗಿಲವು ಸಮುದ್ರದಲ್ಲಿ ಹಾಡುತ್ತದೆ.", "gu": "વ્હેલ સમુદ્રમાં ગાય છે.", "pa": "ਵ੍ਹੇਲ ਸਮੁੰਦਰ ਵਿੱਚ ਗਾਉਂਦੀ ਹੈ।", "ml": "തിമിംഗലം കടലിൽ പാടുന്നു.", "he": "הלווייתן שר בים.",
}  # fmt: skip


@pytest.mark.parametrize("code", TEXTS)
def test_detect(code):
    assert language.detect(TEXTS[code]) == code


def test_no_letters_no_language():
    assert language.detect("42 - 7 = 35 https://example.com") is None and language.detect("") is None
    assert language.detect("THE WHALE SINGS IN THE DEEP") == "en"

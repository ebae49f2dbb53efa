"""The splitter against sentences that were cut by hand, and the properties of any text."""

import re
from time import process_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.sentences import split_sentences

# Passages of public-domain books (classic-books-markdown: Alcott, Austen, C. Brontë, Carroll,
# Doyle, Kipling, Montgomery, Nesbit, Stevenson, Stoker, Twain, Washington and others), cut by hand
# before the splitter saw them. "|" marks a boundary.
BOOKS = r"""
According to Prof. H. F. Osborn and other authorities, they were the ancestors of all the later forms of reptiles.
He went into P. S. Pfouts' store, where Davis was, and apologized for his conduct, saying that he would take it all back.
Report from Patrick Hennessey, M. D., M. R. C. S. L. K. Q. C. P. I., etc., etc., to John Seward, M. D.
"Will you explain what the trouble is?" asked Anne, in her most dignified manner. | It had no apparent effect on the irate J. A. Harrison.
"I propose Mr. Theodore Laurence as an honorary member of the P. C. | Come now, do have him."
Warriors, drunk with the blood of the brave men of the Seventh U. S. Cavalry, were defying the Government. | The camp was only a day's journey from us.
His three companions--John Bancroft, James J. Higginson, and B. W. Crowninshield, all Boston and Harvard College like himself--were satisfied with what they had seen.
The wind veered later to the west, and the sun came out at 9 p.m. | For at this time, near the end of November, we had the midnight sun.
Under way 8 a.m. | Skipper feeling much better after feeding him up. | Lunched a few yards past Smith's grave.
Very cold night, temperature --30° Fahr. | What with wet bags and clothes, rotten.
"'But what is the treasure, then?' I asked. | 'I am as ready to be rich as you can be, if you will but show me how it can be done.'
"Too much noise, Grace," said Mrs. Fairfax. | "Remember directions!" | Grace curtseyed silently and went in.
The golden barrier was gone from between us. | "Thank God!" I ejaculated from my very heart.
"Alexandra's never been in love, you crazy!" | He laughed again. | "She wouldn't know how to go about it. | The idea!"
"Most preposterous!" I exclaimed, and then, suddenly realizing how he had echoed the inmost thought of my soul, I sat up in my chair.
"What!" I cried, "do you take such savage usage at his hands? | Why, you are no slave, to be so handled!"
"The first week?" | He turned again to the pages of his diary, calculating rapidly under his breath. | "The first week, did you say?" | He threw back his head with a long laugh.
"And some are all shot through with rosy stains and quivers . . . and some have a soft glitter like moonlight on the sea . . . and some are pale and transparent like mist at dawn."
"P . . . p . . . p . . . lease, m . . . m . . . miss," he began.
"Ahem . . . Anne, I've been wanting to see you about that little matter. | I've decided not to let my fences to that company after all."
"There must be some mistake . . . there must. | I knew those Pyes would make a mess of things."
She would half rise, and hold out a long thin hand with three rings on it.... | He thought she would be sitting in a sofa-corner near the fire.
I can see things for which most men need a telescope ... | Away down the slope, a couple of miles away, several men were advancing, like a row of beaters at a shoot ...
"Hum... ha... well, if the boy held his tongue because he promised, and not from obstinacy, I'll forgive him. | He's a stubborn fellow and hard to manage," said Mr. Laurence.
I feel like a dissipated London fine lady, with my head a jumble of gallant creatures who say "Ah!" and twirl their blond mustaches. | I long to see you all.
Next, their Excellencies the Governors of Oahu, Hawaii, etc., and after them a string of High Sheriffs.
It is Bob Armstrong -- upside down, and slightly altered, and refers to the Hon. Robert Armstrong, stipendiary magistrate of Sierra Leone, etc.
'Lost, on the 9th inst., Mr. Jeremiah Hayling, aged twenty-six, a hydraulic engineer. | Left his lodgings at ten o'clock at night. | Was dressed in,' etc., etc. | Ha! | That represents the last time that the colonel needed to have his machine overhauled, I fancy."
"Must!" screamed the Princess, her black eyes flashing with fury--for she still wore her No. 17 head. | "Must, to me!"
"Would ther' be any sense in that? | No. | And ther' ain't no sense in this, nuther. | Is it ketching?"
"No. | We see out of our four eyes," said the bullocks. | "We see straight in front of us."
The native verdict was "She done witch herself," i.e. she was a witch eaten by her own familiar.
"Of course no attempt to identify these oils in the quantity sent, viz., 632 c.c. (one bottle) was made. | The ethers are returned as ethyl acetate."
The only daughter of Aloysius Doran. Esq., of San Francisco, Cal., U.S.A.' | That is all."
'No, they're not,' said the White Rabbit, 'and that's the queerest thing about it.' | (The jury all looked puzzled.)
'Who cares for you?' said Alice, (she had grown to her full size by this time.) | 'You're nothing but a pack of cards!'
"Hukm hai!" (It is an order!), said the camel with a gurgle.
"Unjust!—unjust!" said my reason, forced by the agonising stimulus into precocious though transitory power.
"But if you mean, was it Mr. Hyde?—why, yes, I think it was! | You see, it was much of the same bigness."
An impulse of fury against Reed, Brocklehurst, and Co. bounded in my pulses at the conviction. | I was no Helen Burns.
Letter, Messrs. Carter, Paterson & Co., London, to Messrs. Billington & Son, Whitby.
10 p. m.—I have visited him again and found him sitting in a corner brooding. | When I came in he threw himself on his knees before me.
"August 10.--The ship's position is lat. 70° 40' S., forty miles north 29° east of Cape Adare. | The distance drifted from August 2 to 6 was one hundred miles."
5 October, 5 p. m.—Our meeting for report. | Present: Professor Van Helsing, Lord Godalming, Dr. Seward, Mr. Quincey Morris.
"Lady St. Simon said something about 'jumping a claim.' | She was accustomed to use slang of the kind."
The Missouri will enter ten miles of St. Louis. | When I, as a boy, first saw it, it was twenty-two miles above St. Louis, according to the estimate of pilots.
What a face he had, now that it was almost on a level with mine! what a great nose! and what a mouth! and what large prominent teeth!
Thus had she sinned in all things--sinned in living and in dying. | God help her! and all other sinners, if any more there be.
"The letter arrived on March 10, 1883. | His death was seven weeks later, upon the night of May 2nd."
Nov. 12. | The United States affair has ended and not well. | Lord Russell rather turned tail.
1. Here a captive heart busted. | 2. Here a poor prisoner, forsook by the world and friends, fretted his sorrowful life. | 3. Here a lonely heart broke.
"'Take him to the main guard,' said I. | The two Sikhs closed in upon him on each side, and the giant walked behind.
"Dog, sir," said I. | "Has Mr. Trelawney not told you of the buccaneers? | He was one of them."
Is the man going mad? thought I. | He is very like Don Quixote.
"Not I. | The utmost I hope is, to save money enough out of my earnings to set up a school some day."
"Wouldn't Matthew be proud if I got to be a B.A.? | Oh, it's delightful to have ambitions."
"That's what college ought to be for, instead of for turning out a lot of B.A.'s, so chock full of book-learning and vanity. | You're all right."
W. W. Forrest, M.D., came at once. | He talked to Peter on the way back.
"Can we have the butler in for a moment?... | Ames, I understand that you have often seen this very unusual mark."
"Goody!... | No, Tom, that ain't it. | If it is, it ain't in this one-horse town."
'M-a-r-k three!... | M-a-r-k three!... | Quarter-less three!... | Half twain!'
'In January, 1828, twenty-one steamers left the New Orleans wharf to celebrate the occasion of Gen. Jackson's visit to that city.
"Oh, Capt. Ned, this will never do. | Think how it will sound."
But destiny, in the shape of the Rev. Mr. Nasmyth, came between me and Miss Temple.
"In what order you keep these rooms, Mrs. Fairfax!" said I. | "No dust, no canvas coverings: except that the air feels chilly."
That foolish boy Henry VIII. was courting his little Anne. | People in Buckinghamshire would have come upon them unexpectedly.
He was progressing well, thanks to God and St. Joseph and Ste. Mary. | He has been under our care for nearly six weeks.
"You are not wounded, Holmes?" I asked, as my friend entered the room.
"And those are ...?" asked Lord Henry, helping himself to some salad.
"Well, what if I am?" McMurdo answered in a surly voice.
"But a cripple!" said I. | "What could he have done single-handed against a man in the prime of life?"
The initial "S" stood for no name, for "John Hatcher" was changed to "John S. Lincoln" or "John S. Sherman."
""".strip().splitlines()  # noqa: E501

HARD = [
    "“Stop!” he cried. | “No!” I cried. | He ran.",
    "“Why?” Mr. Holmes asked. | “Because.” | She left.",
    "He said “Stop!” | Then he ran.",
    "Mr. Darcy met J. K. Jerome in the U.S. | The U.S. Army came at 5 p.m. | Holmes ran.",
    "She likes fruit, e.g. Apples from St. Ives, i.e. Cornwall. | It costs $3.50 a lb. | Yes.",
    "Smith & Co. Limited sold it. | He joined Smith & Co. | The firm failed, cf. Jones, p. 5.",
    "Pi is 3.14. | 300 men came. | Version 2.0.1 is out. | See www.Example.Com or a@b.org.",
    "He left.|She stayed. | Well!|Nobody came. | “No.”|“Yes.” | “So.”|She went.",
    "He left (at last.) | She did not (why not?) and we (you know who) waited.",
    "It ended… | Then it began… slowly. | But — no! — it did not.",
    "“One.” | “Two!” | ‘Three?’ | “Four,” he said. | [Five.] | He wrote: “Six.”",
    "我们走吧。|你好！|“真的吗？”他说。|他笑了。",
    "「行こう。」と彼は言った。|雨だ。|はい！",
    "it was good . | the acting was bad . | mr. smith agreed , e.g. on that .",
    'He said , " It is over . " | She left . | " Yes . "',
    "I. The beginning. | II. The end. | Better than I. | Mary went.",
    "क्या हाल है। | सब ठीक है। | هل أنت بخير؟ | نعم.",
]  # fmt: skip


def boundaries(sentences: list[str]) -> set[int]:
    """Return how many visible characters stand before each boundary."""
    ends, seen = set(), 0
    for sentence in sentences[:-1]:
        seen += len("".join(sentence.split()))
        ends.add(seen)
    return ends


def cut_by_hand(marked: str) -> tuple[str, list[str]]:
    return re.sub(r" ?\| ", " ", marked).replace("|", ""), marked.split("|")


@pytest.mark.parametrize("marked", HARD)
def test_hard_cases_are_cut_exactly(marked):
    text, expected = cut_by_hand(marked)
    assert split_sentences(text) == [sentence.strip() for sentence in expected]


def test_books_are_cut_as_a_reader_cuts_them():
    missed, invented, found = [], [], 0
    for marked in BOOKS:
        text, expected = cut_by_hand(marked)
        by_hand, ours = boundaries(expected), boundaries(split_sentences(text))
        found += len(by_hand & ours)
        missed += [marked] * len(by_hand - ours)
        invented += [marked] * len(ours - by_hand)
    precision = found / (found + len(invented))
    recall = found / (found + len(missed))
    report = "\n".join(["missed:", *missed, "invented:", *invented])
    assert len(BOOKS) >= 70 and found + len(missed) >= 70
    assert precision >= 0.95, report
    assert recall >= 0.97, report


text_of_stops = st.text(
    st.sampled_from(list("aA b.B!?…。！“”\"'’() \n\t1I—,")) | st.characters(codec="utf-8")
)


@given(text_of_stops | st.text())
@example("")
@example(" . ")
@example('a . " ')
@example('a. "')
@example('"')
@example("A。”，b。」。")
@example("\x1c.\x1c\u2028.\u3000")
def test_nothing_but_whitespace_is_lost(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() and sentence for sentence in sentences)


@given(text_of_stops)
def test_sentences_of_a_paragraph_do_not_depend_on_the_whitespace_around_it(text):
    assert split_sentences(f" \n{text}\t ") == split_sentences(text)


def test_time_grows_with_the_text_alone():
    def seconds(text: str) -> float:
        begin = process_time()
        split_sentences(text)
        return process_time() - begin

    # Each is one endless sentence, or all stops: what backtracking or re-scanning would make slow.
    for piece in ('a . " x ', "Mr. ", ". . ", "!" * 8, "a.b", " " * 8, "((((", "A." * 4):
        short, long = piece * 2_000, piece * 32_000
        assert seconds(long) < 64 * max(seconds(short), 2e-3), piece

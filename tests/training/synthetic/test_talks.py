from phiscope.prompts import FORMATS


def test_an_answer_follows_the_instruct_prompt_and_ends_at_its_stop_string(by_kind):
    form = FORMATS["instruct"]
    for sample in by_kind["qa"]:
        question, answer = sample.text.removeprefix("Instruct: ").rstrip("\n").split("\nOutput: ")
        assert sample.text == f"{form.render(question)} {answer}\n"
        assert not any(stop in sample.text for stop in form.stop)


def test_a_chat_is_turns_of_alice_and_bob_as_the_format_renders_them(by_kind):
    form = FORMATS["chat"]
    for sample in by_kind["chat"]:
        lines = sample.text.rstrip("\n").split("\n")
        asked = [line.removeprefix("Alice: ") for line in lines[0::2]]
        replies = [line.removeprefix("Bob: ") for line in lines[1::2]]
        history = list(zip(asked, replies, strict=True))[:-1]
        assert sample.text == f"{form.render(asked[-1], history)} {replies[-1]}\n"

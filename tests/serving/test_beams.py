"""The beams of a translation through `/api/traces`."""

from seq2chat.interpret.beams import MAX_STEPS, beams
from seq2chat.interpret.reading import input_ids
from seq2chat.training.checkpoint import load_checkpoint

TEXT = "Hello there"


def test_beams_are_those_of_the_search(client, folders):
    def create(status=200, model="translates", **fields):
        response = client.post("/api/traces", json={"model": model, "text": TEXT} | fields)
        assert response.status_code == status, response.text
        return response.json()

    model, tokenizer = load_checkpoint(folders["translates"])
    search = beams(model, input_ids(model, tokenizer, TEXT), tokenizer.eos_id, 3)
    reply = create(beams=3)["beams"]
    nodes = [[(n.token, n.parent, n.ended) for n in step] for step in search.steps[:MAX_STEPS]]
    assert [[(n[0], n[1], bool(n[3])) for n in step] for step in reply["steps"]] == nodes
    assert [h["tokens"] for h in reply["hypotheses"]] == [h.tokens for h in search.hypotheses]
    message = create(400, model="base", beams=3)["error"]["message"]
    assert message == "A gpt does not translate, so it has no beams."
    assert create(400, beams=11)["error"]["param"] == "beams"

"""What the backend's answers change in the outbox."""

from __future__ import annotations

from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.protocol.bodies import Completed, Superseded, fitting
from catalogzero.protocol.deciding import Verdict
from catalogzero.wire.messages import JsonObject


def note_answer(
    outbox: Outbox,
    upload_id: str,
    verdict: Verdict,
    said: JsonObject,
    seq: int | None = None,
    size: int = 0,
    *,
    generation: str = "",
) -> bool:
    """Write into the outbox what an answer means; `seq` is that of a chunk, `size` what left.

    Of what the backend said, only what has the protocol's form and bounds gets there.

    Returns:
        False where the answer is of another `generation` than the known one: it ends nothing.
    """
    if verdict is Verdict.STORED:
        outbox.acknowledge(upload_id, seq, size)
    elif verdict is Verdict.COMPLETE_NOW:
        outbox.acknowledge(upload_id, None)
    elif verdict is Verdict.SEND_MISSING:
        outbox.missing(upload_id, said["missing"])
    elif verdict is Verdict.SUPERSEDED:
        answer = Superseded.model_validate(said).model_dump()
        return outbox.superseded(upload_id, answer, generation)
    elif verdict is Verdict.DONE:
        done = fitting(Completed, said)
        if done is None:
            return outbox.done(upload_id, None, size, generation=generation)
        return outbox.done(
            upload_id,
            str(done.job_id),
            size,
            # By its own upload_id the number is the one that the mark has: only content that is
            # there under another one raises it.
            same_key_seq=done.source_seq if done.by == "upload_key" else None,
            generation=generation,
            number=done.number,
        )
    return True

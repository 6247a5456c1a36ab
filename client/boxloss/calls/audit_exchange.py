"""The messages of an audit that are sent and not yet answered."""

from __future__ import annotations

from boxloss.audit.image import Image
from boxloss.audit.rules import ImageAudit, Rules
from boxloss.audit.summary import Summary, Tally
from boxloss.audit.wire import audit_from_message, image_to_message, rules_to_message
from boxloss.calls import arguments
from boxloss.calls.stream_exchange import StreamExchange
from boxloss.contract.arrays import unexpected
from boxloss.errors import InvalidInputError
from boxloss.v1.audit_service_pb2 import AuditRequest, AuditResponse


class AuditExchange(StreamExchange[Image, Image, ImageAudit]):
    """Images on their way, in order, and the summary of those that are answered.

    The server sums up, too; what is summed up here outlasts a connection that breaks.

    Args:
        rules: of the audit.
        worst: how many of the worst images and findings the summary names.
    """

    def __init__(self, rules: Rules, worst: int) -> None:
        super().__init__()
        arguments.instance(rules, Rules, "rules", "give boxloss.audit.rules.Rules")
        self._rules = AuditRequest(rules=rules_to_message(rules, 0)).SerializeToString()
        self._tally = Tally(arguments.whole(worst, "worst"))
        self._asked = 0

    @property
    def unanswered(self) -> list[bytes]:
        return [self._rules, *super().unanswered]

    def ask(self, image: Image) -> list[bytes]:
        try:
            arguments.instance(image, Image, f"images[{self._asked}]", "give a boxloss.audit.image.Image")
        except InvalidInputError as error:
            self.ended, self.fault = True, error
            return []
        self._asked += 1
        message = AuditRequest(image=image_to_message(image)).SerializeToString()
        self._unanswered.append((message, image))
        return [message]

    def answer(self, response: AuditResponse) -> ImageAudit:
        _, image = self._unanswered.popleft()
        if response.WhichOneof("content") != "image":
            raise unexpected("no findings for an image")
        audited = audit_from_message(response.image)
        if audited.image_id != image.image_id:
            raise unexpected(f"findings for image {audited.image_id!r} where those for {image.image_id!r} are due")
        self._tally.add(image, audited)
        return audited

    def summary(self) -> Summary:
        """All images that are answered."""
        return self._tally.summary()

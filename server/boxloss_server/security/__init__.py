"""Security: who may call and who it is; certificates and tokens, and the files that they come from."""

from boxloss_server.security.access import Access, Context
from boxloss_server.security.certificates import Certificates
from boxloss_server.security.files import Files
from boxloss_server.security.tokens import Tokens

__all__ = ["Access", "Certificates", "Context", "Files", "Tokens"]

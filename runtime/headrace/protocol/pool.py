"""The descriptor pool of Headrace's own messages.

tritonclient, kserve and mlserver register `inference.*` in protobuf's default pool. Ours stays private, so that all
of them can be imported in one process.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()

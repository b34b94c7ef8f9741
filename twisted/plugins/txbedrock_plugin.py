from twisted.application.service import ServiceMaker

bedrockproxy = ServiceMaker(
    "txbedrock",
    "txbedrock.tap",
    "A gateway for Amazon Bedrock: one URL and one key instead of AWS credentials",
    "bedrockproxy",
)

bedrocksandbox = ServiceMaker(
    "txbedrock sandbox",
    "txbedrock.sandbox.tap",
    "A stand-in for Amazon Bedrock that checks signatures and plays faults; no model",
    "bedrocksandbox",
)

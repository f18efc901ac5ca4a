from recsys_assets_tests.s3_server import any_bucket, aws_environment, s3_bucket, s3_endpoint

__all__ = ["any_bucket", "aws_environment", "s3_bucket", "s3_endpoint"]

class S3Tree:
    pass

# The two commands of the README in a container:
#   docker build --tag reproduce .
#   docker run --rm --volume "$PWD/runs:/project/runs" reproduce                    # make reproduce-per
#   docker run --rm reproduce make test
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /project
COPY . .
RUN PIP_NO_CACHE_DIR=1 make setup
CMD ["make", "reproduce-per"]

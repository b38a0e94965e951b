# The long-lived coordinator of a run, for apps that need one (parameter Coordinator=yes of the stack).
#
#   python -m build --wheel
#   docker build -f src/fleetfold/aws/coordinator.Dockerfile -t fleetfold-coordinator .
#   docker push ACCOUNT.dkr.ecr.REGION.amazonaws.com/fleetfold-coordinator     (a repository of that name)
#   fleetfold aws deploy --set Coordinator=yes --set CoordinatorImage=… --set CoordinatorVpc=vpc-… \
#                        --set CoordinatorSubnets=subnet-…,subnet-…
#
# It talks to AWS only, as its task's role may, and writes nothing on its own disk.
FROM public.ecr.aws/docker/library/python:3.13-slim
COPY dist/*.whl /tmp/
RUN pip install --no-cache-dir --no-compile "$(echo /tmp/fleetfold-*.whl)[aws]" && rm /tmp/*.whl
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
USER 65534:65534
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "fleetfold.aws.coordinator"]

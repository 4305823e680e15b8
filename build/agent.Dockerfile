# The agent's image: one static binary and nothing else. It is what the Job's pod and the canary pod run, and what the agent
# brings into the new runtime before the switch.
# The release puts a binary per platform below the context; locally: make build, then
#   docker build -f build/agent.Dockerfile --build-arg TARGETPLATFORM=. -t IMAGE bin
FROM scratch
ARG TARGETPLATFORM
COPY ${TARGETPLATFORM}/runtime-agent /runtime-agent
ENTRYPOINT ["/runtime-agent"]

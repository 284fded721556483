#!/bin/bash
# Once, at the first start: what every session and every command on this node finds in its environment.
set -eu
for line in 'AWS_REGION=${AWS::Region}' 'AWS_DEFAULT_REGION=${AWS::Region}' 'MLFLOW_TRACKING_ARN=${MlflowArn}' \
  'TASKRUNNER_BUCKET=${Bucket}'; do
  sed -i "/^${!line%%=*}=/d" /etc/environment
  printf '%s\n' "${!line}" >> /etc/environment
done

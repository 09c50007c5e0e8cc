#!/bin/sh
# The same job without an operator: ./submit.sh https://API-SERVER:6443 [executors]
#
# Needs spark-submit of Spark 3 on the PATH, and kubectl.
set -eu
server=${1:?usage: submit.sh https://API-SERVER:6443 [executors]}
executors=${2:-15}
token=$(kubectl -n spark-demo create token spark)
# Limits, or the pods would have no quota: a batch pod may use what it is limited to, not what it requests.
exec spark-submit \
  --master "k8s://$server" \
  --deploy-mode cluster \
  --name spark-tc \
  --class org.apache.spark.examples.SparkTC \
  --conf spark.kubernetes.namespace=spark-demo \
  --conf spark.kubernetes.authenticate.submission.oauthToken="$token" \
  --conf spark.kubernetes.authenticate.driver.serviceAccountName=spark \
  --conf spark.kubernetes.container.image="${SPARK_IMAGE:-spark:3.5.6}" \
  --conf spark.driver.cores=1 --conf spark.driver.memory=3g \
  --conf spark.kubernetes.driver.limit.cores=1 \
  --conf spark.executor.instances="$executors" \
  --conf spark.executor.cores=1 --conf spark.executor.memory=3g \
  --conf spark.kubernetes.executor.limit.cores=1 \
  local:///opt/spark/examples/jars/spark-examples_2.12-3.5.6.jar

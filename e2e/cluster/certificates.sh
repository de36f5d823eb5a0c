#!/usr/bin/env bash
# The keys, certificates and kubeconfigs of one test cluster.
#
#   e2e/cluster/certificates.sh FOLDER SERVER NODE_ADDRESS SERVICE_ADDRESS
#
# One authority signs everything and lives for a day, as the cluster does. Kubernetes takes the name of a
# user from the common name and the groups from the organisation.
set -euo pipefail

FOLDER=$1 SERVER=$2 NODE_ADDRESS=$3 SERVICE_ADDRESS=$4
mkdir -p -m 700 "$FOLDER"
cd "$FOLDER"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# certificate NAME SUBJECT USAGE [SUBJECT_ALTERNATIVE_NAMES]
certificate() {
  local -a names=()
  [[ -z ${4:-} ]] || names=(-addext "subjectAltName=$4")
  key "$1"
  openssl req -new -x509 -days 1 -CA ca.crt -CAkey ca.key -key "$1.key" -subj "$2" -out "$1.crt" \
    -addext basicConstraints=critical,CA:FALSE -addext keyUsage=digitalSignature \
    -addext "extendedKeyUsage=$3" "${names[@]}" 2>>openssl.log
}

encoded() { base64 -w 0 "$1"; }

kubeconfig() {
  cat >"$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: aegis, cluster: {server: "$SERVER", certificate-authority-data: $(encoded ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(encoded "$1.crt"), client-key-data: $(encoded "$1.key")}}]
contexts: [{name: aegis, context: {cluster: aegis, user: $1}}]
current-context: aegis
YAML
}

# person NAME SUBJECT: somebody who speaks to the API server.
person() { certificate "$1" "$2" clientAuth; kubeconfig "$1"; }

key ca
openssl req -new -x509 -days 1 -key ca.key -subj /CN=aegis-e2e -out ca.crt \
  -addext keyUsage=critical,keyCertSign,cRLSign 2>>openssl.log
key service-accounts
openssl ec -in service-accounts.key -pubout -out service-accounts.pub 2>>openssl.log

certificate apiserver /CN=kube-apiserver serverAuth \
  "IP:127.0.0.1,IP:$NODE_ADDRESS,IP:$SERVICE_ADDRESS,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
certificate apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
certificate kubelet-server /O=system:nodes/CN=system:node:node serverAuth "IP:$NODE_ADDRESS,DNS:node"
person admin /O=system:masters/CN=admin
person kubelet /O=system:nodes/CN=system:node:node
person controller-manager /CN=system:kube-controller-manager
person scheduler /CN=system:kube-scheduler
person proxy /CN=system:kube-proxy

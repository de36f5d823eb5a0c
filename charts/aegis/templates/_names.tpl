{{- /* Names are fixed, because the operator knows its Lease, its Secret and its webhooks by name. */}}

{{- /* The labels of a component, by which its pods are selected: (dict "name" …) */}}
{{- define "aegis.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: aegis
{{- end }}

{{- /* All labels of an object of a component: (dict "name" … "root" $) */}}
{{- define "aegis.labels" -}}
{{ include "aegis.selector" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- /* An image: (dict "image" .Values.images.x "root" $) */}}
{{- define "aegis.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* What every pod of Aegis runs with: pod security `restricted`. */}}
{{- define "aegis.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "aegis.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- /* Where the pods of a component run: its values. */}}
{{- define "aegis.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Namespaces where pods are governed: an administrator's label, and never Aegis' own or the cluster's. */}}
{{- define "aegis.enrolled" -}}
matchLabels: { aegis.dev/inject: enabled }
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: NotIn
    values: {{- concat .Values.injection.excludedNamespaces (list .Release.Namespace .Values.nodeAgent.namespace) | uniq | toYaml | nindent 6 }}
{{- end }}

{{- /* The token by which a component of Aegis gets its SVID. */}}
{{- define "aegis.token" -}}
- name: token
  projected:
    sources: [{ serviceAccountToken: { audience: {{ .Values.injection.audience }}, expirationSeconds: 600, path: token } }]
{{- end }}

{{- /* Where the ledger is kept: postgres, trial (the chart's own) or sqlite. Nothing is guessed. */}}
{{- define "aegis.ledgerStore" -}}
{{- $ledger := .Values.ledger -}}
{{- if and $ledger.postgres.trial $ledger.postgres.secretName -}}
{{- fail "ledger.postgres.trial and ledger.postgres.secretName name two databases; keep one" -}}
{{- else if $ledger.postgres.secretName -}}
postgres
{{- else if $ledger.postgres.trial -}}
trial
{{- else if eq $ledger.mode "read" -}}
{{- fail "a ledger that only reads needs a log to read: ledger.postgres.secretName names the Secret with its postgres:// URL; set it" -}}
{{- else if gt ($ledger.replicas | int) 1 -}}
{{- fail "SQLite takes one replica of the ledger; set ledger.postgres.secretName, or ledger.replicas to 1" -}}
{{- else -}}
sqlite
{{- end -}}
{{- if and (eq $ledger.mode "write") (not .Values.ca.enabled) -}}
{{- fail "a ledger that writes takes journals over mutual TLS and needs the CA; set ca.enabled" -}}
{{- end -}}
{{- end }}

{{- define "trimtab.name" -}}
{{- if contains "trimtab" .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}-operator
{{- else -}}
{{ printf "%s-trimtab" .Release.Name | trunc 50 | trimSuffix "-" }}-operator
{{- end -}}
{{- end }}

{{- define "trimtab.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (include "trimtab.name" .) }}
{{- end }}

{{- define "trimtab.selector" -}}
app.kubernetes.io/name: trimtab-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trimtab.labels" -}}
{{ include "trimtab.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: trimtab
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What the operator does in a namespace that it serves. */}}
{{- define "trimtab.namespacedRules" -}}
- apiGroups: [trimtab.dev]
  resources: [llmdeployments]
  verbs: [get, list, watch]
- apiGroups: [trimtab.dev]
  resources: [llmdeployments/status]
  verbs: [patch]
# Children block the deletion of their owner; clusters that enforce it ask for this right (it sets no finalizer).
- apiGroups: [trimtab.dev]
  resources: [llmdeployments/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# To step back where another autoscaler owns the number of replicas.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
{{- end }}
